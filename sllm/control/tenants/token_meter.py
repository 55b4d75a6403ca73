"""Tokens that each tenant uses, against what it may use in a minute."""

from dataclasses import dataclass
from typing import Final

_MINUTE: Final = 60.0
_ROUNDING: Final = 1e-6
"""Of a token, that sums of seconds may be off."""


@dataclass(frozen=True, slots=True)
class _Bucket:
    used: float
    """Tokens that have not yet run out of it."""
    at: float
    """Clock's seconds at which that was so."""


class TokenMeter:
    """A leaky bucket for each tenant; every `now` is in the clock's seconds.

    What was used runs out at the tenant's rate, and a request may begin where there is room for one
    more token of a minute's worth. One that is under way is never stopped, so that a bucket may run
    over: then those that come next wait for longer.
    """

    def __init__(self) -> None:
        self._buckets: dict[str, _Bucket] = {}

    def count(self, tenant: str, tokens: int, per_minute: int, now: float) -> None:
        """Notes that a tenant, who may use so many a minute, has used `tokens` more."""
        self._buckets[tenant] = _Bucket(self._used(tenant, per_minute, now) + tokens, now)

    def wait(self, tenant: str, per_minute: int, now: float) -> float:
        """Seconds until a tenant, who may use so many a minute, may use more. 0: it may now."""
        if not per_minute:
            return _MINUTE
        lacking = self._used(tenant, per_minute, now) + 1 - per_minute
        return lacking * _MINUTE / per_minute if lacking > _ROUNDING else 0.0

    def _used(self, tenant: str, per_minute: int, now: float) -> float:
        bucket = self._buckets.get(tenant)
        if bucket is None:
            return 0.0
        return max(0.0, bucket.used - (now - bucket.at) * per_minute / _MINUTE)
