"""How many requests an instance works on at once, by how fast their tokens come: pure.

Additive increase, multiplicative decrease: one more as long as tokens come well within the target
and all slots are taken, fewer in proportion once they are too slow. Between the two nothing
changes, and a number that was too much is not tried again for a while, twice as long each time.
"""

import statistics
from dataclasses import dataclass, replace
from typing import Final

from sllm.control.cluster.usage import Limit

WELL_WITHIN: Final = 0.85
"""Of the target, up to which one request more is tried."""
TOO_SLOW: Final = 1.1
"""Times the target, from which on there are to be fewer."""
LEAST_SAMPLES: Final = 32
LEAST_SECONDS: Final = 0.5
"""What a look takes: so many times of tokens, over so long."""
FIRST_PAUSE, LONGEST_PAUSE = 5.0, 300.0
"""Seconds until a number that was too much is tried again."""
_MOST_SAMPLES: Final = 256
_MOST_AT_ONCE: Final = 0.5
"""Part of the requests that stay at least, however slow they are."""


@dataclass(slots=True)
class Window:
    """What was seen of an instance since the last look."""

    began: float
    """Clock's seconds."""
    times: list[float]
    """Seconds between two tokens of a request."""
    most_at_once: int = 0
    """Requests that it had."""

    def add(self, seconds: float, at_once: int) -> None:
        """Takes in a token that came so long after the one before it."""
        if len(self.times) < _MOST_SAMPLES:
            self.times.append(seconds)
        self.most_at_once = max(self.most_at_once, at_once)

    def suffices(self, now: float) -> bool:
        """Whether enough was seen for a look."""
        return len(self.times) >= LEAST_SAMPLES and now - self.began >= LEAST_SECONDS


def tuned(limit: Limit, window: Window, target: float, most: int, now: float) -> Limit:
    """The limit after a look.

    The median counts: a pause, as for another's prompt, says nothing of the other tokens.

    Args:
        limit: Before.
        window: What was seen.
        target: Seconds between two tokens that are asked for.
        most: Requests that the instance may have whatever was seen.
        now: The clock's seconds.
    """
    seen = statistics.median(window.times)
    limit = replace(limit, requests=min(limit.requests, most), time_per_token=seen)
    if seen > TOO_SLOW * target:
        # Those that it had before there were to be fewer say nothing of how these will fare.
        leaving = window.most_at_once > limit.requests
        return limit if leaving else _lowered(limit, window, target / seen, now)
    full = window.most_at_once >= limit.requests
    if seen < WELL_WITHIN * target and full and now >= limit.retry_at and limit.requests < most:
        return replace(limit, requests=limit.requests + 1)
    if full and now >= limit.retry_at:
        return replace(limit, pause=0.0)  # as many as that are no trouble any more
    return limit


def _lowered(limit: Limit, window: Window, ratio: float, now: float) -> Limit:
    fewer = int(window.most_at_once * max(_MOST_AT_ONCE, ratio))
    pause = min(LONGEST_PAUSE, max(FIRST_PAUSE, 2 * limit.pause))
    return replace(
        limit, requests=max(1, min(fewer, limit.requests - 1)), retry_at=now + pause, pause=pause
    )
