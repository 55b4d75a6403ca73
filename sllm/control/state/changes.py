"""Tells those who watch deployments that something about them has changed."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable


class Changes:
    """Changes by name. A watcher that is slow sees several changes as one."""

    def __init__(self, over: Callable[[str], Iterable[str]] = lambda _: ()) -> None:
        """`over` names the deployments that are served by what serves another one."""
        self._over = over
        self._watchers: dict[str, asyncio.Event] = {}
        self._names: set[str] = set()
        self._any = asyncio.Event()

    def notify(self, name: str) -> None:
        """Something about deployment `name` has changed, or about what serves it."""
        for one in (name, *self._over(name)):
            self._names.add(one)
            if event := self._watchers.pop(one, None):
                event.set()
        self._any.set()

    def changed(self, name: str) -> asyncio.Event:
        """An event that is set at the next change of `name`."""
        return self._watchers.setdefault(name, asyncio.Event())

    async def follow(self) -> AsyncIterator[set[str]]:
        """Names that have changed since the last time. For one reader."""
        while True:
            await self._any.wait()
            self._any.clear()
            names, self._names = self._names, set()
            yield names
