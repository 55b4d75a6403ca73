"""Draws of our own in vLLM: to it every request is greedy, and each row has one token to choose."""

from collections.abc import Callable
from typing import Any

import torch
from vllm.v1.sample.logits_processor.interface import LogitsProcessor, MoveDirectionality

from sllm.node.worker.engine.sampler import Draw, draw_tokens, token_logprobs
from sllm.node.worker.engine.vllm.batch import Running

KEY = "sllm"
"""Which of the extra arguments of a request says what its id is."""


def sampler_of(running: Callable[[str], Running | None]) -> type[Any]:
    """A class of logits processors for one engine.

    Args:
        running: the request of an id in the core, if anybody wants its token.
    """

    class Sampler(LogitsProcessor):  # type: ignore[misc]  # untyped library
        """Draws the tokens of requests that ask for it, and computes logprobs."""

        def __init__(self, vllm_config: Any, device: Any, is_pin_memory: bool) -> None:
            self.rows = Rows()

        def is_argmax_invariant(self) -> bool:
            """It decides the argmax."""
            return False

        def update_state(self, batch_update: Any) -> None:
            """Notes which row of logits is whose."""
            if batch_update is not None:
                self.rows.update(batch_update)

        def apply(self, logits: torch.Tensor) -> torch.Tensor:
            """Chooses tokens by logits, float32 [rows, vocabulary], changed in place."""
            found = [(row, running(key)) for row, key in self.rows.keys.items()]
            return choose(logits, [(row, one) for row, one in found if one is not None])

    return Sampler


class Rows:
    """Which row of a batch is whose: the id in the core by the index of the row."""

    def __init__(self) -> None:
        self.keys: dict[int, str] = {}

    def update(self, change: Any) -> None:
        """Follows a `BatchUpdate` of vLLM: what is removed, then what is added, then moves."""
        for row in change.removed:
            self.keys.pop(row, None)
        for row, params, *_ in change.added:
            self.keys[row] = params.extra_args[KEY]
        for first, second, direction in change.moved:
            one, other = self.keys.pop(first, None), self.keys.pop(second, None)
            if one is not None:
                self.keys[second] = one
            if other is not None and direction is MoveDirectionality.SWAP:
                self.keys[first] = other


def choose(logits: torch.Tensor, rows: list[tuple[int, Running]]) -> torch.Tensor:
    """Has an argmax find the tokens that are drawn; notes logprobs, and which rows are broken."""
    # The largest is no number if any is none; tokens that are ruled out are at minus infinity.
    sound = logits.amax(-1).isfinite().tolist()
    for row, one in rows:
        one.broken = not sound[row]
    rows = [(row, one) for row, one in rows if sound[row]]
    drawing = [(row, one) for row, one in rows if not one.request.sampling.greedy]
    asking = [(row, one) for row, one in rows if one.request.logprobs is not None]
    if not drawing and not asking:
        return logits
    tokens = _chosen(logits, drawing)
    if asking:
        _note_logprobs(logits, tokens, asking)
    return logits.scatter_(-1, tokens.unsqueeze(-1), torch.inf)


def _chosen(logits: torch.Tensor, drawing: list[tuple[int, Running]]) -> torch.Tensor:
    """The token of each row: drawn where one is, else the likeliest."""
    index = [row for row, _ in drawing]
    draws = [Draw(one.request.sampling, one.position) for _, one in drawing]
    if index == list(range(len(logits))):
        return draw_tokens(logits, draws)
    tokens = logits.argmax(-1)
    if index:
        tokens[index] = draw_tokens(logits[index], draws)
    return tokens


def _note_logprobs(
    logits: torch.Tensor, tokens: torch.Tensor, asking: list[tuple[int, Running]]
) -> None:
    index = [row for row, _ in asking]
    counts = [one.request.logprobs or 0 for _, one in asking]
    logprobs = token_logprobs(logits[index], tokens[index], counts)
    for (_, one), logprob in zip(asking, logprobs, strict=True):
        one.logprob = logprob
