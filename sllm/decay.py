"""Counts that fade: how often something was used of late, in one number."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Decaying:
    """A count of which half is gone after every half-life. Immutable; time is an argument."""

    count: float = 0.0
    """As of `at`."""
    at: float = 0.0
    """Clock's seconds."""

    def value(self, now: float, half_life: float) -> float:
        """What is left of it; `half_life` is in seconds."""
        kept: float = 0.5 ** (max(0.0, now - self.at) / half_life)
        return self.count * kept

    def level(self, half_life: float) -> float:
        """Says which of two counts is the larger, at any moment after both, without naming one."""
        return -math.inf if self.count <= 0 else math.log2(self.count) + self.at / half_life

    def plus_one(self, now: float, half_life: float) -> "Decaying":
        """One more, now."""
        return Decaying(self.value(now, half_life) + 1.0, now)
