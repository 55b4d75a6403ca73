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
    """The sums that a line of least squares needs; every observation gives another one."""

    count: int = 0
    x: float = 0.0
    y: float = 0.0
    xx: float = 0.0
    xy: float = 0.0

    def observed(self, x: float, y: float) -> "Fit":
        """With one observation more."""
        return Fit(self.count + 1, self.x + x, self.y + y, self.xx + x * x, self.xy + x * y)

    @property
    def line(self) -> Line | None:
        """The best line of those that neither fall nor begin below zero. None: nothing observed.

        Through observations at a single x goes the constant: what it grows with is not known.
        """
        if not self.count:
            return None
        spread = self.count * self.xx - self.x * self.x
        constant = Line(self.y / self.count, 0.0)
        if spread <= 1e-9 * self.count * self.xx:
            return constant
        slope = (self.count * self.xy - self.x * self.y) / spread
        base = (self.y - slope * self.x) / self.count
        if slope <= 0:
            return constant
        return Line(base, slope) if base >= 0 else Line(0.0, self.xy / self.xx)
