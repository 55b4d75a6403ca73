"""Calls that each tenant makes, against what it may make in a second."""

import math
from typing import Final

_NEVER_SECONDS: Final = 60.0
"""That a tenant is told to wait which may make no call."""
_LONGEST_SECONDS: Final = 86_400.0
"""That any other is told, and waits: rates have no lower bound."""


class CallMeter:
    """A leaky bucket for each tenant; every `now` is in the clock's seconds.

    meter = CallMeter()
    meter.take("acme", 2.0, now)    # 0.0 for the first two; then the seconds until there is room
    """

    def __init__(self) -> None:
        self._taken_until: dict[str, float] = {}

    def take(self, tenant: str, per_second: float, now: float) -> float:
        """Counts a call of a tenant that may make so many a second.

        Returns:
            0: it may make this one. Otherwise seconds until it may make one; this is not counted.
        """
        if not per_second:
            return _NEVER_SECONDS
        together = max(per_second, 1.0)
        earliest = now - (together - 1.0) / per_second
        # What was taken at a lower rate, which has been raised since, is no longer due.
        latest = now + min(1.0 / per_second, _LONGEST_SECONDS)
        turn = min(max(self._taken_until.get(tenant, -math.inf), earliest), latest)
        if turn > now:
            self._taken_until[tenant] = turn
            return turn - now
        self._taken_until[tenant] = turn + 1.0 / per_second
        return 0.0
