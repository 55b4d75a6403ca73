"""How instances are used: what the router gives them, and what moving that elsewhere would take."""

import math
from dataclasses import dataclass
from typing import Final

_KEPT_FREE_OF: Final = 8
"""Of so many slots of an instance one is kept free of requests that nobody waits for: whoever comes
has it at once, and does not wait for one of them to leave."""


@dataclass(frozen=True, slots=True)
class Limit:
    """What has been found for one instance."""

    requests: int
    """That it works on at once."""
    time_per_token: float = 0.0
    """Seconds between two tokens of a request, by the last look. 0: there was none."""
    retry_at: float = 0.0
    """Clock's seconds from which on one more may be tried."""
    pause: float = 0.0
    """How long that was put off. 0: it was not."""
    target: float = 0.0
    """Seconds between two tokens for which all of this was found."""


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

    limit: Limit | None = None
    """What was found by how fast its tokens come. None: it has as many as its deployment says."""

    def most(self, max_concurrency: int) -> int:
        """Requests that it should have at once, of as many as its deployment says."""
        return min(max_concurrency, self.limit.requests) if self.limit else max_concurrency

    def most_with_background(self, max_concurrency: int) -> int:
        """The same where the last one to come is one that nobody waits for."""
        most = self.most(max_concurrency)
        return most - (most >= _KEPT_FREE_OF)

    def taken(self, max_concurrency: int) -> int:
        """Slots that nobody else is given: beside requests that nobody waits for the free one."""
        most = self.most(max_concurrency)
        kept = most - self.most_with_background(max_concurrency) if self.background else 0
        return max(self.in_flight, min(most, self.in_flight + kept))

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
