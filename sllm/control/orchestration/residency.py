"""Instances that come back keep their room for a while, so that models do not thrash.

Where more models are asked for than fit, each start would end the model whose requests come next.
So an instance that comes back after its deployment had to make room stays for a multiple of the
time that its start has taken. Meanwhile the requests for other models gather, and are served
together when their turn comes: the share of the time that starts take is bounded, and so is the
wait.
"""

import math
from collections.abc import Mapping

COMES_BACK_SECONDS = 60.0
"""A deployment that comes back within this time was in use when it had to make room."""
_KEPT_SECONDS = 3600.0
"""No start that would still come back in time takes longer; most that are displaced never do."""


class Residency:
    """The turns that instances have. Every `now` is in the clock's seconds."""

    def __init__(self, factor: float, longest: float) -> None:
        """An instance's turn lasts `factor` times as long as its start, `longest` at most."""
        self._factor = factor
        self._longest = longest
        self._displaced: dict[str, float] = {}
        """When a deployment last had to make room."""
        self._until: dict[str, float] = {}
        """When an instance's turn is over."""

    def displaced(self, deployment: str, now: float) -> None:
        """An instance of a deployment had to make room for others."""
        recent = {key: at for key, at in self._displaced.items() if now - at < _KEPT_SECONDS}
        self._displaced = {**recent, deployment: now}

    def ready(self, instance_id: str, deployment: str, start_seconds: float, now: float) -> None:
        """An instance is ready; if it comes back, its turn begins."""
        displaced = self._displaced.pop(deployment, None)
        away = math.inf if displaced is None else now - start_seconds - displaced
        if away <= COMES_BACK_SECONDS:
            self._until[instance_id] = now + min(self._longest, self._factor * start_seconds)

    def resident(self, now: float) -> Mapping[str, float]:
        """The instances whose turn it is, and when it is over."""
        self._until = {key: until for key, until in self._until.items() if until > now}
        return self._until
