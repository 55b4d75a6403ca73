"""Requests under way, as far as it matters for migrating them, and what that takes."""

from dataclasses import dataclass


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
