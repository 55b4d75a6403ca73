"""Attempts at requests that their callers have named: the end of one is not to end the next.

A generation is cancelled by its id, which a caller that comes back uses again, here or at another
gateway. So each attempt has a name of its own, which goes along: a cancel that is overtaken by the
next attempt finds nothing to end.
"""

import asyncio
import uuid
from collections.abc import Awaitable, Callable

Cancel = Callable[[str, str], Awaitable[None]]
"""Ends the generation of an id, if an attempt is its latest, within a time of its own."""


def new_attempt() -> str:
    """The name of an attempt, which no other has."""
    return uuid.uuid4().hex


class Cancels:
    """Those that are on their way; belongs to the event loop."""

    def __init__(self, cancel: Cancel) -> None:
        self._cancel = cancel
        self._under_way: set[asyncio.Task[None]] = set()

    def begin(self, request_id: str, attempt: str) -> None:
        """Has the generation of an attempt end, and does not wait for it."""
        task = asyncio.create_task(self._cancelled(request_id, attempt), name="cancel")
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def close(self) -> None:
        """Waits for what is on its way."""
        if self._under_way:
            await asyncio.wait(self._under_way)

    async def _cancelled(self, request_id: str, attempt: str) -> None:
        await self._cancel(request_id, attempt)
