"""Time as an argument: the real clock, and one for tests that moves when it is told to."""

import asyncio
import heapq
import time
from typing import Protocol


class Clock(Protocol):
    """Monotonic seconds, and waiting by them."""

    def now(self) -> float:
        """Seconds since some fixed point; never goes back."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Returns once `seconds` have passed."""
        ...


class MonotonicClock:
    """The machine's clock."""

    def now(self) -> float:
        """Seconds since some fixed point; never goes back."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Returns once `seconds` have passed."""
        await asyncio.sleep(seconds)


class SleeplessClock(MonotonicClock):
    """The same, which goes on while the machine sleeps, as what others have promised does."""

    def now(self) -> float:
        """Seconds since the machine's start; never goes back."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)


class ManualClock:
    """A clock that stands still until `advance` is called."""

    def __init__(self, start: float = 0.0) -> None:
        self._now = start
        self._sleepers: list[tuple[float, int, asyncio.Event]] = []
        self._count = 0

    def now(self) -> float:
        """Seconds, as set by `advance`."""
        return self._now

    async def sleep(self, seconds: float) -> None:
        """Returns once `advance` has passed the moment `seconds` from now."""
        woken = asyncio.Event()
        self._count += 1
        heapq.heappush(self._sleepers, (self._now + seconds, self._count, woken))
        await woken.wait()

    def advance(self, seconds: float) -> None:
        """Moves time on and wakes those whose moment has come, in order."""
        self._now += seconds
        while self._sleepers and self._sleepers[0][0] <= self._now:
            heapq.heappop(self._sleepers)[2].set()
