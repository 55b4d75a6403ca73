"""What the orchestrator has to look at, and when."""

import asyncio
from collections.abc import Iterable

from sllm.clock import Clock
from sllm.control.state.changes import Changes


class Agenda:
    """Deployments that are due: something about them has happened, or a moment has come."""

    def __init__(self, changes: Changes, clock: Clock) -> None:
        self._changes = changes
        self._clock = clock
        self._woken = asyncio.Event()
        self._due: set[str] = set()
        self._room_changed = False
        self._moments: dict[str, float] = {}
        """When time alone makes a deployment due, in the clock's seconds."""

    def wake(self, deployment: str) -> None:
        """Makes a deployment due: its requests or instances have changed."""
        self._due.add(deployment)
        self._woken.set()
        self._changes.notify(deployment)

    def wake_for_room(self) -> None:
        """Makes all due that found no room: a node has, or may have, more of it than before."""
        self._room_changed = True
        self._woken.set()

    def later(self, deployment: str, moment: float) -> None:
        """Makes a deployment due at a moment, in the clock's seconds, if nothing does before."""
        self._moments[deployment] = min(moment, self._moments.get(deployment, moment))

    def forget(self, deployment: str) -> None:
        """Drops the moment of a deployment that is no more."""
        self._moments.pop(deployment, None)

    async def until_due(self) -> None:
        """Returns once anything is due."""
        moment = min(self._moments.values(), default=None)
        delay = None if moment is None else max(0.0, moment - self._clock.now())
        try:
            async with asyncio.timeout(delay):
                await self._woken.wait()
        except TimeoutError:
            return

    def take(self, now: float, unmet: Iterable[str]) -> set[str]:
        """The deployments to look at; none of them is due any longer.

        Args:
            now: Clock's seconds.
            unmet: Deployments that have found no room, and are due if there may be more of it.
        """
        self._woken.clear()
        due, self._due = self._due, set()
        due |= {name for name, moment in self._moments.items() if moment <= now}
        if self._room_changed:
            due.update(unmet)
        self._room_changed = False
        for name in due:
            self._moments.pop(name, None)
        return due
