"""Keeps those who call on and on, though they are refused, from taking the others' time.

A refusal costs what any call costs: its messages are read, its names looked up, its tenant's books
opened. A tenant whose calls are refused faster than a person would try is refused here instead,
unread, for as long as it has all that it may have; and each no comes late, so that callers who wait
for it call less often. What comes of it is logged and counted in sums.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

import structlog

from sllm import errors
from sllm.clock import Clock
from sllm.control import metrics
from sllm.control.tenants.refusals import Refusals

log = structlog.get_logger()

NOBODY: Final = ""
"""Stands for the tenant of those who are not known."""
_MOST_LATE: Final = 2_000
"""Refusals that are late at a time: each is a call that is kept open."""
_TOLD_SECONDS: Final = 10.0
"""Between two lines of one tenant's."""


class Turnstile:
    """Knows who is refused how often. Belongs to the event loop."""

    def __init__(
        self,
        take_call: Callable[[str], None],
        has_all: Callable[[str], errors.TenantLimit | None],
        clock: Clock,
    ) -> None:
        """Nobody has been refused yet.

        Args:
            take_call: Counts a call of a tenant, or raises TenantLimit.
            has_all: Says why a tenant may make no request now; None: it may, for all it knows.
            clock: Of the times of refusals.
        """
        self._take_call = take_call
        self._has_all = has_all
        self._clock = clock
        self._refusals = Refusals()
        self._late = 0
        self._untold: Counter[str] = Counter()
        self._told_at: dict[str, float] = {}

    def check(self, tenant: str, *, bounded: bool) -> None:
        """Refuses a tenant's call unread; `bounded`: it makes requests.

        Raises:
            errors.TenantLimit: The tenant calls too often, or is refused again and again.
        """
        self._take_call(tenant)
        flooded = bounded and self._refusals.is_flooded(tenant, self._clock.now())
        if flooded and (refusal := self._has_all(tenant)):
            raise refusal

    def count(self, tenant: str) -> float:
        """Notes a refusal; gives the seconds by which it is to be late."""
        late = self._refusals.count(tenant, self._clock.now())
        if late:
            metrics.late_refusals.add(1, {"tenant": tenant})
            self._untold[tenant] += 1
            self._tell(tenant)
        return late

    async def hold(self, late: float, context: Any) -> None:
        """Lets a refused call wait, but not beyond what its caller still waits for."""
        remaining = context.time_remaining()
        seconds = late if remaining is None else min(late, remaining / 2)
        if seconds <= 0 or self._late >= _MOST_LATE:
            return
        self._late += 1
        try:
            await asyncio.sleep(seconds)
        finally:
            self._late -= 1

    def _tell(self, tenant: str) -> None:
        now = self._clock.now()
        if now >= self._told_at.get(tenant, now):
            self._told_at[tenant] = now + _TOLD_SECONDS
            log.warning("access.flooded", tenant=tenant or None, refused=self._untold.pop(tenant))
