"""From tokens to text, as they come: never half a character, never a part of a stop string."""

from collections.abc import Callable, Mapping, Sequence
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
    special_tokens: Mapping[int, str]
    """Special tokens and how they are written; `decode` gives nothing for them."""


class Detokenizer:
    """The text of a growing sequence of tokens.

    What has been given out never changes: all of it together is what decoding all tokens at once
    gives. So text is held back while it ends within a character or within a run of byte tokens.

    Only a few of the latest tokens are decoded again: from an anchor, whose text has been given
    out. The anchor's text is not empty, since decoders may strip a space from the first token
    that has any.
    """

    def __init__(self, vocabulary: Vocabulary, *, skip_special_tokens: bool = True) -> None:
        self._skips_special = skip_special_tokens
        self._decode = vocabulary.decode
        self._byte_token_ids = vocabulary.byte_token_ids
        self._special_tokens = vocabulary.special_tokens
        self._tokens: list[int] = []
        """From the anchor on."""
        self._given = 0
        """How many of `_tokens` have their text given out."""

    def push(self, token_id: int) -> str:
        """What the text has grown by with this token; often nothing."""
        if token_id in self._special_tokens:
            return "" if self._skips_special else self._cut() + self._special_tokens[token_id]
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

    def _cut(self) -> str:
        """The text so far, incomplete as it may be; what follows adds nothing to its end."""
        rest = self._ungiven()
        if rest:
            self._tokens, self._given = [], 0
        return rest

    def _ungiven(self) -> str:
        given = self._decode(self._tokens[: self._given]) if self._given else ""
        return self._decode(self._tokens)[len(given) :]

    def _give(self, latest: int) -> None:
        if self._decode([latest]):
            self._tokens = [latest]
        self._given = len(self._tokens)


class StopStrings:
    """Cuts a text that grows before the first of some strings to appear.

    Special tokens are no part of the text. A string that has one in it is looked for in the text
    with its special tokens, any other in the text without them.
    """

    def __init__(
        self, strings: Sequence[str], special: Sequence[str] = (), *, include: bool = False
    ) -> None:
        """Looks from the next text on.

        Args:
            strings: to be met.
            special: how special tokens are written that are no part of the text.
            include: whether the text is cut behind a string, and not before it.
        """
        self._include = include
        marked = {string for string in strings if any(one in string for one in special if one)}
        self._marked = tuple(marked)
        self._plain = tuple(set(strings) - marked)
        self._held = ""
        """The end of all there is so far, which may be the beginning of a stop string."""
        self._shown: list[int] = []
        """Which of its letters are not those of special tokens: their places in it."""

    def push(self, grown: str, special: str = "") -> tuple[str, str | None]:
        """What may be given out of the text so far, and the stop string that it has met.

        Args:
            grown: what the text has grown by.
            special: the special token that has come after it.
        """
        if not (self._marked or self._plain):
            return grown, None
        begin = len(self._held)
        self._shown.extend(range(begin, begin + len(grown)))
        self._held += grown + special
        met = self._first_met()
        if met is not None:
            start, end, string = met
            return self._give(end if self._include else start, forget=True), string
        return self._give(self._ambiguous()), None

    def flush(self) -> str:
        """What was held back, now that no more text comes."""
        return self._give(len(self._held))

    def _give(self, end: int, *, forget: bool = False) -> str:
        """The text before a place, which is not held any longer."""
        given = "".join(self._held[place] for place in self._shown if place < end)
        self._held = "" if forget else self._held[end:]
        self._shown = [] if forget else [place - end for place in self._shown if place >= end]
        return given

    def _first_met(self) -> tuple[int, int, str] | None:
        """Where the stop string begins and ends that is complete first, and which it is.

        Of two that end together, the longer. So it does not matter in which pieces the text comes.
        """
        text = self._text()
        marked = [(self._held.find(string), string) for string in self._marked]
        spans = [(at, at + len(string), string) for at, string in marked if at >= 0]
        for string in self._plain:
            if (at := text.find(string)) >= 0:
                last = self._shown[at + len(string) - 1]
                spans.append((self._shown[at], last + 1, string))
        return min(spans, key=lambda span: (span[1], span[0]), default=None)

    def _ambiguous(self) -> int:
        """Where the longest end begins that may become a stop string."""
        text, whole = self._text(), len(self._held)
        marked = [whole - _overlap(self._held, string) for string in self._marked]
        overlaps = [_overlap(text, string) for string in self._plain]
        plain = [self._shown[len(text) - overlap] for overlap in overlaps if overlap]
        return min([*marked, *plain], default=whole)

    def _text(self) -> str:
        return "".join(self._held[place] for place in self._shown)


def _overlap(text: str, string: str) -> int:
    """Length of the longest end of `text` that is a beginning of `string`, but not all of it."""
    longest = min(len(text), len(string) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(string[:n])), 0)


@dataclass(frozen=True, slots=True)
class TextDelta:
    """What a token adds to a text."""

    text: str
    stop: str | None
    """The stop string that was met, if one was; the text ends there."""


class TextStream:
    """The text of one generation."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        stop: Sequence[str] = (),
        *,
        include_stop: bool = False,
        skip_special_tokens: bool = True,
    ) -> None:
        """An empty text.

        Args:
            vocabulary: of the model.
            stop: strings that end it.
            include_stop: whether they are part of it.
            skip_special_tokens: whether special tokens are no part of it.
        """
        self._detokenizer = Detokenizer(vocabulary, skip_special_tokens=skip_special_tokens)
        self._special = vocabulary.special_tokens
        self._unseen = vocabulary.special_tokens if skip_special_tokens else {}
        special = tuple(self._special.values()) if stop else ()
        self._stops = StopStrings(stop, special, include=include_stop)

    def push(self, token_id: int, *, may_stop: bool = True) -> TextDelta:
        """Takes the next token; nothing is pushed after a stop string was met.

        Args:
            token_id: the token.
            may_stop: whether stop strings are looked for in its text, and from there on.
        """
        grown = self._detokenizer.push(token_id)
        if not may_stop:
            return TextDelta(grown, None)
        return TextDelta(*self._stops.push(grown, self._unseen.get(token_id, "")))

    def push_end(self, token_id: int, *, may_stop: bool = True) -> TextDelta:
        """Takes a token that ends the text and is no part of it; `may_stop` as in `push`."""
        if not may_stop:
            return TextDelta("", None)
        return TextDelta(*self._stops.push("", self._special.get(token_id, "")))

    def finish(self, *, may_stop: bool = True) -> TextDelta:
        """What was held back, now that no more tokens come; `may_stop` as in `push`."""
        if not may_stop:
            return TextDelta(self._detokenizer.flush(), None)
        text, stop = self._stops.push(self._detokenizer.flush())
        return TextDelta(text if stop else text + self._stops.flush(), stop)
