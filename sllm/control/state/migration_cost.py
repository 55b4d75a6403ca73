"""What moving a generation takes, learned from those that have moved: a · tokens + b."""

from typing import Final

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
        self._sums = (0.0, 0.0, 0.0, 0.0, 0.0)
        """Of weights, tokens, seconds, tokens squared, tokens times seconds."""

    def observe_prefill(self, tokens: int, seconds: float) -> None:
        """Takes in how long the engine of a ready instance has taken for a prompt."""
        if not self._moved and tokens > 0:
            self._add(tokens, seconds)

    def observe_move(self, tokens: int, seconds: float) -> None:
        """Takes in how long generations of so many tokens altogether have taken to move."""
        if not self._moved:
            self._moved = True
            self._sums = (0.0, 0.0, 0.0, 0.0, 0.0)
        self._add(tokens, seconds)

    @property
    def cost(self) -> MigrationCost | None:
        """A and b. None: nothing was observed yet."""
        weight, tokens, seconds, squares, products = self._sums
        if not weight or not tokens:
            return None
        spread = weight * squares - tokens * tokens
        # Where all had as many tokens, a line through the origin is all that can be told.
        known = spread > 1e-6 * weight * squares
        slope = (weight * products - tokens * seconds) / spread if known else seconds / tokens
        slope = max(0.0, slope)
        return MigrationCost(slope, max(0.0, (seconds - slope * tokens) / weight))

    def _add(self, tokens: int, seconds: float) -> None:
        new = (1.0, tokens, seconds, tokens * tokens, tokens * seconds)
        self._sums = tuple(  # type: ignore[assignment]  # as many as before
            _KEPT * before + more for before, more in zip(self._sums, new, strict=True)
        )
