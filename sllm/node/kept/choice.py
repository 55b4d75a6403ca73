"""How many kept pages of a prompt are read rather than computed: what is sooner."""

from collections.abc import Sequence
from dataclasses import dataclass

OVERHEAD_SECONDS = 0.002
"""Of asking, beside what is read."""


@dataclass(frozen=True, slots=True)
class KeptPage:
    """A page of a prompt that is kept."""

    size_bytes: int
    segment: str
    """Whatever is read of a segment on SSD, it is read as a whole, once."""
    unread_bytes: int
    """Of its segment, what has to come from SSD first; 0: it is in the pool."""


@dataclass(frozen=True, slots=True)
class Rates:
    """How fast bytes come, and how fast tokens are computed."""

    pool_bytes_per_second: float
    """From the pool into a KV cache."""
    ssd_bytes_per_second: float
    seconds_per_token: float | None
    """Of computing a prompt. None: nobody has done that yet."""


def worth_reading(pages: Sequence[KeptPage], page_tokens: int, rates: Rates) -> int:
    """How many pages, from the first, to read: so that they and what is computed take least.

    Where nobody knows what computing takes, all: reading is sooner but for the smallest models.
    """
    if rates.seconds_per_token is None:
        return len(pages)
    best, best_gain, cost = 0, 0.0, OVERHEAD_SECONDS
    seen: set[str] = set()
    for count, page in enumerate(pages, 1):
        cost += page.size_bytes / rates.pool_bytes_per_second
        if page.segment not in seen:
            seen.add(page.segment)
            cost += page.unread_bytes / rates.ssd_bytes_per_second
        gain = count * page_tokens * rates.seconds_per_token - cost
        if gain > best_gain:
            best, best_gain = count, gain
    return best
