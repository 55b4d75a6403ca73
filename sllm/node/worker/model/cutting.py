"""Texts, and pairs of them, as the tokens that a model sees at once: cut where that is asked."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sllm.errors import ContextExceeded, InvalidPrompt
from sllm.node.worker.model.module import ModelFiles
from sllm.node.worker.model.prompts import check_known
from sllm.prompt_size import MAX_BYTES_PER_TOKEN


@dataclass(frozen=True, slots=True)
class Cut:
    """What a model sees of a text, or of a pair."""

    token_ids: tuple[int, ...]
    type_ids: tuple[int, ...]
    """Which of two texts each token is of. Empty: the model is not told."""
    truncated: bool
    """Whether the end was left out."""


class Cutter:
    """Makes tokens of texts with one tokenizer. Any number of threads may use it."""

    def __init__(self, files: ModelFiles, context_tokens: int) -> None:
        """`context_tokens`: that the model sees of one text, or of one pair."""
        self._backend: Any = files.tokenizer.backend_tokenizer
        self._backend.no_truncation()  # some files ask for it: here callers do
        self._backend.no_padding()
        self._tells_apart = "token_type_ids" in files.tokenizer.model_input_names
        self._lowers = files.architecture.use.lowers
        self._vocabulary_size = files.vocabulary_size
        self._context = context_tokens

    def one(self, text: str | Sequence[int], what: str, *, truncate: bool) -> Cut:
        """What the model sees of a text, or of tokens.

        Args:
            text: not empty.
            what: it is called in errors.
            truncate: whether its end is left out if it is too long.

        Raises:
            ContextExceeded: It is too long.
            InvalidPrompt: It has no tokens, or one that the model does not know.
        """
        if isinstance(text, str):
            encoding, whole = self._encode(text, truncate)
            return self._joined(encoding, None, what, truncate=truncate, whole=whole)
        self._check(len(text), what, truncate)
        kept = tuple(text[: self._context])
        check_known(kept, self._vocabulary_size)
        return Cut(kept, (), len(text) > self._context)

    def pair(self, query: str, document: str, what: str, *, truncate: bool) -> Cut:
        """What the model sees of a document beside a query, which is never cut.

        Raises:
            ContextExceeded: They are too long, or the query leaves no room for the document.
            InvalidPrompt: They have no tokens, or one that the model does not know.
        """
        first, _ = self._encode(query, cut=False)
        second, whole = self._encode(document, truncate)
        return self._joined(first, second, what, truncate=truncate, whole=whole)

    def _encode(self, text: str, cut: bool) -> tuple[Any, bool]:
        """Tokens without special ones, and whether they are those of all of the text."""
        most = MAX_BYTES_PER_TOKEN * self._context
        if len(text) > most and not cut:
            raise self._too_long(f"a text of {len(text)} letters")
        seen = text[:most]
        lowered = seen.lower() if self._lowers else seen
        return self._backend.encode(lowered, add_special_tokens=False), len(seen) == len(text)

    def _joined(
        self, first: Any, second: Any | None, what: str, *, truncate: bool, whole: bool
    ) -> Cut:
        special = self._backend.num_special_tokens_to_add(second is not None)
        last, before = (first, 0) if second is None else (second, len(first.ids))
        room = self._context - special - before
        self._check(before + special + len(last.ids), what, truncate and room > 0)
        cut = len(last.ids) > room
        if cut:
            last.truncate(room)
        joined = self._backend.post_process(first, second)
        if not joined.ids:
            raise InvalidPrompt(f"{what} is empty: it has no tokens")
        check_known(joined.ids, self._vocabulary_size)
        types = tuple(joined.type_ids) if self._tells_apart else ()
        return Cut(tuple(joined.ids), types, cut or not whole)

    def _check(self, tokens: int, what: str, may_be_cut: bool) -> None:
        if tokens > self._context and not may_be_cut:
            raise self._too_long(f"{what} has {tokens} tokens", tokens)

    def _too_long(self, what: str, tokens: int = 0) -> ContextExceeded:
        return ContextExceeded(
            f"{what}, and the model sees {self._context} of one at most: shorten it, or set "
            "truncate",
            metadata={"prompt_tokens": str(tokens), "context_tokens": str(self._context)},
        )


def size_bytes(texts: Sequence[str | Sequence[int]]) -> int:
    """Of what has to be tokenized, about: by its letters. Tokens are tokens already."""
    return sum(len(text) for text in texts if isinstance(text, str))
