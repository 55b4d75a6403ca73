"""From tokens to text, as they come: never half a character, never a part of a stop string."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

Decode = Callable[[Sequence[int]], str]
"""Token ids to text, without special tokens."""

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
"""What a decoder gives for the bytes of a character that is not complete."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What turning tokens into text takes."""

    decode: Decode
    byte_token_ids: frozenset[int]
    """Tokens that are single bytes, such as <0xE6>. Their text depends on the whole run of them:
    a byte that does not fit makes every character of the run unreadable."""
    skipped_token_ids: frozenset[int]
    """Special tokens, for which `decode` gives nothing."""


class Detokenizer:
    """The text of a growing sequence of tokens.

    What has been given out never changes: all of it together is what decoding all tokens at once
    gives. So text is held back while it ends within a character or within a run of byte tokens.

    Only a few of the latest tokens are decoded again: from an anchor, whose text has been given
    out. The anchor's text is not empty, since decoders may strip a space from the first token
    that has any.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._decode = vocabulary.decode
        self._byte_token_ids = vocabulary.byte_token_ids
        self._skipped_token_ids = vocabulary.skipped_token_ids
        self._tokens: list[int] = []
        """From the anchor on."""
        self._given = 0
        """How many of `_tokens` have their text given out."""

    def push(self, token_id: int) -> str:
        """What the text has grown by with this token; often nothing."""
        if token_id in self._skipped_token_ids:
            return ""
        self._tokens.append(token_id)
        if token_id in self._byte_token_ids:
            return ""
        grown = self._ungiven()
        if not grown or grown.endswith(_INCOMPLETE):
            return ""
        self._give(token_id)
        return grown

    def flush(self) -> str:
        """The rest, incomplete as it may be; nothing is pushed after it."""
        return self._ungiven()

    def _ungiven(self) -> str:
        given = self._decode(self._tokens[: self._given]) if self._given else ""
        return self._decode(self._tokens)[len(given) :]

    def _give(self, latest: int) -> None:
        if self._decode([latest]):
            self._tokens = [latest]
        self._given = len(self._tokens)


class StopStrings:
    """Cuts a text that grows before the first of some strings to appear."""

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = tuple(strings)
        self._held = ""
        """The end of the text so far, which may be the beginning of a stop string."""

    def push(self, grown: str) -> tuple[str, str | None]:
        """What may be given out of the text so far, and the stop string that it has met."""
        if not self._strings:
            return grown, None
        text = self._held + grown
        met = self._first_in(text)
        if met is not None:
            self._held = ""
            return text[: text.index(met)], met
        start = len(text) - self._ambiguous(text)
        self._held = text[start:]
        return text[:start], None

    def flush(self) -> str:
        """What was held back, now that no more text comes."""
        held, self._held = self._held, ""
        return held

    def _first_in(self, text: str) -> str | None:
        """The stop string that is complete first; of two that end together, the longer.

        So it does not matter in which pieces the text has come.
        """
        found = [string for string in self._strings if string in text]
        return min(
            found,
            key=lambda string: (text.index(string) + len(string), -len(string)),
            default=None,
        )

    def _ambiguous(self, text: str) -> int:
        """Length of the longest end of the text that begins a stop string."""
        return max(_overlap(text, string) for string in self._strings)


def _overlap(text: str, string: str) -> int:
    """Length of the longest end of `text` that is a beginning of `string`, but not all of it."""
    longest = min(len(text), len(string) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(string[:n])), 0)


@dataclass(frozen=True, slots=True)
class TextDelta:
    """What a token adds to a text."""

    text: str
    stop: str | None
    """The stop string that was met, if one was; the text ends before it."""


class TextStream:
    """The text of one generation."""

    def __init__(self, vocabulary: Vocabulary, stop: Sequence[str] = ()) -> None:
        self._detokenizer = Detokenizer(vocabulary)
        self._stops = StopStrings(stop)

    def push(self, token_id: int) -> TextDelta:
        """Takes the next token; nothing is pushed after a stop string was met."""
        return TextDelta(*self._stops.push(self._detokenizer.push(token_id)))

    def finish(self) -> TextDelta:
        """What was held back, now that no more tokens come."""
        text, stop = self._stops.push(self._detokenizer.flush())
        return TextDelta(text if stop else text + self._stops.flush(), stop)
