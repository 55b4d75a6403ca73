"""Draws of our own in vLLM: to it every request is greedy, and each row has one token to choose."""

from collections.abc import Callable
from typing import Any

import torch
from vllm.v1.sample.logits_processor.interface import LogitsProcessor, MoveDirectionality

from sllm.node.worker.engine.choosing import choose
from sllm.node.worker.engine.vllm.batch import Running
from sllm.node.worker.engine.vllm.choices import share_choice, take_choice

KEY = "sllm"
"""Which of the extra arguments of a request says what its id is."""


def sampler_of(running: Callable[[str], Running | None], ranks: int = 1) -> type[Any]:
    """A class of logits processors for one engine.

    Args:
        running: the request of an id in the core, if anybody wants its token.
        ranks: how many run the model: the others are told what is chosen here.
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
            chosen = choose(logits, [(row, one) for row, one in found if one is not None])
            return share_choice(chosen) if ranks > 1 else chosen

    return Sampler


class FollowingSampler(LogitsProcessor):  # type: ignore[misc]  # untyped library
    """On all ranks but the first, which alone knows what requests ask for."""

    def __init__(self, vllm_config: Any, device: Any, is_pin_memory: bool) -> None:
        """Needs none of it."""

    def is_argmax_invariant(self) -> bool:
        """It decides the argmax."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Rows are in the same order on all ranks."""

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Has tokens be those that the first rank has chosen; changes logits in place."""
        return take_choice(logits)


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
