"""Attempts at requests that their callers have named: the end of one is not to end the next.

A generation is cancelled by its id, which a caller that comes back uses again.
"""

import asyncio
from collections.abc import Awaitable, Callable


class Attempts:
    """Which attempt of an id is the latest at this gateway; belongs to the event loop."""

    def __init__(self, cancel: Callable[[str], Awaitable[None]]) -> None:
        """`cancel` ends the generation of an id, within a time of its own."""
        self._cancel = cancel
        self._latest: dict[str, object] = {}
        self._cancels: dict[str, asyncio.Task[None]] = {}

    async def begin(self, request_id: str, attempt: object) -> None:
        """An attempt, which follows the end of any former one that is on its way."""
        self._latest[request_id] = attempt
        if pending := self._cancels.get(request_id):
            await asyncio.wait([pending])

    def end(self, request_id: str, attempt: object, *, cancels: bool) -> None:
        """An attempt is over. `cancels`: with its generation, unless a later one reads that."""
        if self._latest.get(request_id) is not attempt:
            return
        del self._latest[request_id]
        if cancels:
            task = asyncio.create_task(self._ended(request_id), name=f"cancel {request_id}")
            self._cancels[request_id] = task
            task.add_done_callback(lambda _: self._forget(request_id, task))

    async def close(self) -> None:
        """Waits for what is on its way."""
        if self._cancels:
            await asyncio.wait(list(self._cancels.values()))

    async def _ended(self, request_id: str) -> None:
        await self._cancel(request_id)

    def _forget(self, request_id: str, task: asyncio.Task[None]) -> None:
        if self._cancels.get(request_id) is task:
            del self._cancels[request_id]
