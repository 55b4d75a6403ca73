"""Straight lines through what was observed, by least squares."""

from dataclasses import dataclass
from typing import NamedTuple


class Line(NamedTuple):
    """A quantity that grows with another one: `base + slope * x`."""

    base: float
    slope: float

    def at(self, x: float) -> float:
        """The quantity at `x`."""
        return self.base + self.slope * x


@dataclass(frozen=True, slots=True)
class Fit:
    """The weighted sums that a line of least squares needs; every observation gives another one."""

    weight: float = 0.0
    """Of all observations together; each weighs 1 when it comes."""
    x: float = 0.0
    y: float = 0.0
    xx: float = 0.0
    xy: float = 0.0

    def observed(self, x: float, y: float) -> "Fit":
        """The fit with one more observation."""
        return Fit(self.weight + 1, self.x + x, self.y + y, self.xx + x * x, self.xy + x * y)

    def faded(self, kept: float) -> "Fit":
        """The fit with all observations so far weighing `kept` times as much."""
        return Fit(kept * self.weight, kept * self.x, kept * self.y, kept * self.xx, kept * self.xy)

    @property
    def spreads(self) -> bool:
        """Whether the observations are at more than one x, so that they tell what y grows with."""
        return self._spread > 1e-6 * self.weight * self.xx

    @property
    def _spread(self) -> float:
        return self.weight * self.xx - self.x * self.x

    @property
    def line(self) -> Line | None:
        """The best line of those that neither fall nor begin below zero. None: nothing observed.

        Observations at a single x give the constant: they do not tell what y grows with.
        """
        if not self.weight:
            return None
        constant = Line(self.y / self.weight, 0.0)
        if not self.spreads:
            return constant
        slope = (self.weight * self.xy - self.x * self.y) / self._spread
        base = (self.y - slope * self.x) / self.weight
        if slope <= 0:
            return constant
        return Line(base, slope) if base >= 0 else self.proportional

    @property
    def proportional(self) -> Line | None:
        """The best line through the origin. None: nothing was observed, or only x = 0."""
        return Line(0.0, self.xy / self.xx) if self.xx else None
