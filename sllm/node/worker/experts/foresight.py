"""Which experts the next layer will use, asked of its own router before it is its turn.

What a layer adds to a hidden state is little beside what is there, so that the next router, given
the hidden state of this layer, chooses much of what it will choose (Eliseev and Mazur, 2023). How
much that is, is counted: a guess says how often such guesses have come true.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from sllm.node.worker.experts.keeping import Numbers, Shares

_TOKENS: Final = 256.0
"""Over which it is averaged how often guesses come true."""
_LOOKED_AT: Final = 512
"""Tokens of a step, the last ones, that are followed."""
_SURE: Final = 1 - 1e-6
_LEAST: Final = 0.25
"""Less likely ones are not worth a thought."""


@dataclass(frozen=True, slots=True)
class Guess:
    """What will be used soon, the likeliest first."""

    numbers: Numbers
    """Of experts, counted over all layers."""
    shares: Shares
    """Of each, how likely it is, from 0 to 1."""


class Foresight:
    """Looks one layer ahead. Belongs to the engine's thread."""

    def __init__(self, routers: Sequence[torch.Tensor | None], counts: Sequence[int]) -> None:
        """Knows nothing of how good its guesses are.

        Args:
            routers: of each layer, [experts, hidden size]. None: it is not known.
            counts: the experts of each layer.
        """
        self._routers = routers
        self._starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.intp)
        self._true: dict[int, Shares] = {}
        """By layer, how often the first, second, … choice of its router came true."""
        self._open: tuple[int, Numbers] | None = None
        """What was guessed of which layer, for each token, the likeliest first."""

    def came(self, layer: int, chosen: Numbers) -> None:
        """Holds what a layer uses, [tokens, experts of each], against what was guessed."""
        guessed, self._open = self._open, None
        if guessed is None or guessed[0] != layer or len(guessed[1]) != len(chosen[-_LOOKED_AT:]):
            return
        right = (guessed[1][:, :, None] == chosen[-_LOOKED_AT:, None, :]).any(2)
        known = self._true.setdefault(layer, np.zeros(right.shape[1]))
        known += (right.mean(0) - known) * (1 - (1 - 1 / _TOKENS) ** len(right))

    def next(self, layer: int, hidden: torch.Tensor, each: int) -> Guess | None:
        """What the layer behind `layer` will use. None: nobody knows.

        Args:
            layer: counted over those that have experts.
            hidden: what its own router has chosen by, [tokens, hidden size].
            each: experts that a token uses.
        """
        behind = layer + 1
        router = self._routers[behind] if behind < len(self._routers) else None
        if router is None or router.shape[1] != hidden.shape[-1] or each > router.shape[0]:
            return None
        scores = hidden[-_LOOKED_AT:].to(router.dtype) @ router.T
        guessed: NDArray[np.intp] = scores.topk(each).indices.numpy()
        self._open = behind, guessed
        true = self._true.get(behind)
        if true is None or len(true) != each:
            return None
        missed = np.tile(np.log1p(-np.minimum(true, _SURE)), len(guessed))
        likely = 1 - np.exp(np.bincount(guessed.ravel(), missed, router.shape[0]))
        order = np.argsort(-likely, kind="stable")[: np.count_nonzero(likely >= _LEAST)]
        return Guess(order + self._starts[behind], likely[order])
