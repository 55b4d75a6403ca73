"""How fast calls are refused: whoever calls on and on is told so in turn, and not at once.

refusals = Refusals()
refusals.count("acme", now)        # 0.0 for the first hundred of a second
refusals.is_flooded("acme", now)   # whether the next one would be late
"""

import math
from typing import Final

_A_SECOND: Final = 50.0
"""That are told at once, of one tenant."""
_AT_ONCE: Final = 100
"""That may come together."""
_LATEST: Final = 5.0
"""Seconds by which one is late at most: more would look like a server that hangs."""


class Refusals:
    """A leaky bucket for each tenant; every `now` is in the clock's seconds.

    One that asks more slowly than it runs out is answered at once. Those that come faster are each
    answered when it is their turn: callers who wait for an answer before they call again are slowed
    down to that rate, and cost next to nothing while they wait.
    """

    def __init__(self) -> None:
        self._taken_until: dict[str, float] = {}

    def count(self, tenant: str, now: float) -> float:
        """Notes that a call is refused; gives the seconds by which its answer is to be late."""
        earliest = now - (_AT_ONCE - 1) / _A_SECOND
        turn = max(self._taken_until.get(tenant, -math.inf), earliest)
        self._taken_until[tenant] = min(turn + 1 / _A_SECOND, now + _LATEST)
        return max(0.0, turn - now)

    def is_flooded(self, tenant: str, now: float) -> bool:
        """Whether calls are refused faster than they are to be."""
        return self._taken_until.get(tenant, -math.inf) > now
