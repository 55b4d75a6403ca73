"""How instances are used: what the router gives them, and what moving that elsewhere would take."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Use:
    """What the router does with an instance, as of one moment; replaced, never changed."""

    node_id: str
    in_flight: int
    """Requests that it has given to the instance and that have not ended."""
    last_used: float
    """Clock's seconds when the last request that somebody waited for came or went, or the instance
    became ready."""
    kept_until: float = 0.0
    """Clock's seconds until which a request has wished it to stay."""
    demand: float = -math.inf
    """How much its deployment was asked for of late, as a binary logarithm: 1 more is twice the
    requests. They fade with time; all levels refer to one moment, so that they can be compared."""
    background: int = 0
    """How many of those in flight nobody waits for: they give way to others."""
    asked_for: bool = False
    """Whether it ever had a request that somebody waited for."""

    @property
    def is_busy(self) -> bool:
        """Whether it has requests that somebody waits for."""
        return self.in_flight > self.background


@dataclass(frozen=True, slots=True)
class Running:
    """A request under way, as far as it matters for migrating it."""

    request_id: str
    tokens: int
    """Of its prompt and of what was generated so far: these have to be computed again."""
    expected: int = 0
    """Tokens that it is expected to generate in addition."""


@dataclass(frozen=True, slots=True)
class MigrationCost:
    """What moving a request takes: `per_token` for each token that is computed again, and `base`.

    Learned from migrations, a and b of the estimate.
    """

    per_token: float
    """Seconds."""
    base: float
    """Seconds."""
