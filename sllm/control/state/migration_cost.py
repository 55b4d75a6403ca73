"""What moving a generation takes, learned from those that have moved: a · tokens + b."""

from typing import Final

from sllm.control.cluster.linear_fit import Fit
from sllm.control.cluster.usage import MigrationCost

_KEPT: Final = 0.95
"""Weight of all observations so far when another one comes."""


class MigrationCosts:
    """A line through what was observed, the latest counting most.

    Until a generation has moved, the computing of prompts stands in for it: that is what a
    destination does.
    """

    def __init__(self) -> None:
        self._moved = False
        self._fit = Fit()
        """Of seconds by tokens."""

    def observe_prefill(self, tokens: int, seconds: float) -> None:
        """Takes in how long the engine of a ready instance has taken for a prompt."""
        if not self._moved and tokens > 0:
            self._add(tokens, seconds)

    def observe_move(self, tokens: int, seconds: float) -> None:
        """Takes in how long generations of so many tokens altogether have taken to move."""
        if not self._moved:
            self._moved, self._fit = True, Fit()
        self._add(tokens, seconds)

    @property
    def cost(self) -> MigrationCost | None:
        """A and b. None: nothing was observed yet."""
        # Where all had as many tokens, the line is constant: many more would be expected to take no
        # longer. Seconds per token are the safer guess.
        line = self._fit.line if self._fit.spreads else self._fit.proportional
        return MigrationCost(per_token=line.slope, base=line.base) if line else None

    def _add(self, tokens: int, seconds: float) -> None:
        self._fit = self._fit.faded(_KEPT).observed(tokens, seconds)
