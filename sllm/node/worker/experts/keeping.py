"""Which experts are worth their memory: pure, but for its counts.

After MoE-Infinity (Xue et al., 2024): what a mixture of experts uses is skewed, by the texts that
it is served with, and within a request by what that has used so far. Layers follow one another in
circles: what was used last is used last again, so that whoever goes by that keeps the wrong ones.
"""

from collections.abc import Sequence
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.intp]
"""Of experts, counted over all layers."""
Shares = NDArray[np.float64]

_LONG_TOKENS: Final = 2048.0
"""Tokens over which the use of experts by all requests is averaged."""
_SHORT_TOKENS: Final = 16.0
"""The same by those that are under way."""
_LONG_WEIGHT: Final = 0.25
"""Of what is used over time, beside what is used now: it tells apart what nobody uses now."""
_MOST_COUNTED: Final = 64
"""Tokens of a step that count as so many: those of one prompt are alike."""


class Keeping(Protocol):
    """Which experts stay. Belongs to the engine's thread."""

    def used(self, layer: int, chosen: Numbers) -> None:
        """Notes what a layer uses.

        Args:
            layer: counted over those that have experts.
            chosen: for each token, the experts of the layer that it uses.
        """
        ...

    def worth(self, numbers: Numbers) -> Shares:
        """How much sooner each of them is wanted than others, by any measure."""
        ...


class ByUse(Keeping):
    """Keeps what each layer has used most, lately and by the requests under way."""

    def __init__(self, counts: Sequence[int]) -> None:
        """`counts`: the experts of each layer."""
        self._counts = counts
        self._starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.intp)
        self._long: Shares = np.zeros(self._starts[-1])
        self._short: Shares = np.zeros(self._starts[-1])

    def used(self, layer: int, chosen: Numbers) -> None:
        """See `Keeping.used`."""
        counted = np.bincount(chosen.ravel(), minlength=self._counts[layer])
        share, tokens = counted / len(chosen), min(len(chosen), _MOST_COUNTED)
        within = slice(self._starts[layer], self._starts[layer + 1])
        for mean, period in ((self._long, _LONG_TOKENS), (self._short, _SHORT_TOKENS)):
            mean[within] += (share - mean[within]) * (1 - (1 - 1 / period) ** tokens)

    def worth(self, numbers: Numbers) -> Shares:
        """See `Keeping.worth`: the shares of tokens that use them, lately and over time."""
        return self._short[numbers] + _LONG_WEIGHT * self._long[numbers]
