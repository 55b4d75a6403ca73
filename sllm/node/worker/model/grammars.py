"""Which tokens may come next in a text that is to have a form.

A text's place in its form follows from its tokens alone, so a generation goes on anywhere. What may
come next is found out in a thread of its own as soon as a token is there, while the model computes.
"""

import asyncio
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import Final

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from sllm.errors import InvalidArgument, InvalidStructuredOutput, UnsupportedModel
from sllm.node.worker.model.matching import Limits, Matcher, TokenTree
from sllm.structured_output.form import Form
from sllm.structured_output.grammar import grammar_of

_LETTERS_SHOWN: Final = 500
_LIMITS: Final = Limits(max_lexer_states=20_000, step_lexer_fuel=50_000)
"""A tenth to a quarter of llguidance's own: what one text may take of memory, and of each step."""


class Grammars:
    """Forms over a model's vocabulary. Its first use takes a second or two with a large one."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, vocabulary: int, stop_token_ids: Iterable[int]
    ) -> None:
        """Takes nothing that costs.

        Args:
            tokenizer: of the model.
            vocabulary: columns of its logits.
            stop_token_ids: with which it ends a text, also one that has a form.
        """
        self._hf_tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._stop_token_ids = sorted(stop_token_ids)
        self._never: list[int] = []
        # What begins takes long, and holds up nobody who is under way.
        self._beginning = ThreadPoolExecutor(1, "grammar-begin")
        self._thread = ThreadPoolExecutor(1, "grammar")

    async def begin(self, form: Form, generated: Sequence[int]) -> "Grammar":
        """Follows a text from its beginning.

        Args:
            form: that it is to have.
            generated: tokens that are there, of a generation that was begun elsewhere.

        Raises:
            InvalidStructuredOutput: The form cannot be had with this vocabulary.
            InvalidArgument: The tokens that are there do not have it.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._beginning, self._begin, form, generated)

    def close(self) -> None:
        """Begins no more, and drops what waits."""
        for thread in (self._beginning, self._thread):
            thread.shutdown(wait=False, cancel_futures=True)

    def _begin(self, form: Form, generated: Sequence[int]) -> "Grammar":
        tree = self._tree
        try:
            grammar = grammar_of(form.kind, form.texts)
        except (ValueError, RecursionError) as error:
            raise InvalidStructuredOutput(f"{form.kind} cannot be used: {error}") from error
        matcher = Matcher(tree, grammar, _LIMITS)
        if problem := _problem(matcher):
            raise InvalidStructuredOutput(f"{form.kind} cannot be used: {problem}")
        if not matcher.consume(generated):
            raise InvalidArgument(f"the tokens so far are none of a text of this {form.kind}")
        return Grammar(
            matcher,
            self._vocabulary,
            self._thread,
            never=self._never,
            taken=len(generated),
        )

    @cached_property
    def _tree(self) -> TokenTree:
        known = len(self._hf_tokenizer)
        ends = [token for token in self._stop_token_ids if 0 <= token < known]
        if not ends:
            # There must be one. For a model that never ends a text by itself it is never allowed.
            ends = self._never = [min(self._hf_tokenizer.all_special_ids, default=0)]
        tokenizer, tokens = self._hf_tokenizer.backend_tokenizer, max(self._vocabulary, known)
        try:
            return TokenTree(tokenizer, tokens=tokens, ends=ends)
        except ValueError as error:
            raise UnsupportedModel(
                f"structured_output does not work with this model's tokenizer: {error}"
            ) from error


class Grammar:
    """One text's place in its form; see `TokenGrammar`. Belongs to one thread at a time."""

    def __init__(
        self,
        matcher: Matcher,
        vocabulary: int,
        thread: ThreadPoolExecutor,
        *,
        never: Sequence[int],
        taken: int,
    ) -> None:
        """Goes on where the matcher is.

        Args:
            matcher: nobody else's from here on.
            vocabulary: columns of the logits.
            thread: where the next tokens are found out.
            never: tokens that may not come whatever the matcher says.
            taken: tokens that the matcher has taken.
        """
        self.ends_after: int | None = None
        self.problem = ""
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._mask = matcher.new_mask()
        self._thread = thread
        self._never = list(never)
        self._taken = taken
        self._allowed: Future[torch.Tensor] | None = None
        self._look_ahead()

    def allowed(self) -> torch.Tensor | None:
        """See `TokenGrammar.allowed`."""
        return None if self._allowed is None else self._allowed.result()

    def take(self, token_id: int) -> None:
        """See `TokenGrammar.take`."""
        if self._allowed is None:
            return
        self._allowed.result()  # the matcher is this thread's again
        self._taken += 1
        self._matcher.consume([token_id])
        self._look_ahead()

    def _look_ahead(self) -> None:
        if self._matcher.is_stopped() and not self._matcher.problem():
            self.ends_after, self._allowed = self._taken, None
        else:
            self._allowed = self._thread.submit(self._find_allowed)

    def _find_allowed(self) -> torch.Tensor:
        """None at all where the matcher has given up, as in a form that has become too large."""
        self.problem = _problem(self._matcher)
        if self.problem:
            return torch.zeros(self._vocabulary, dtype=torch.bool)
        self._matcher.fill(self._mask)
        bits = np.unpackbits(self._mask.view(np.uint8), bitorder="little")
        self.problem = _problem(self._matcher)  # where finding out was too much
        bits[self._never] = 0
        return torch.from_numpy(bits[: self._vocabulary].view(np.bool_))


def _problem(matcher: Matcher) -> str:
    """What has brought a matcher to its end, without what it says for its developers."""
    return matcher.problem()[:_LETTERS_SHOWN]
