"""Stores results as they come, many at a time."""

import asyncio
from typing import Final

import structlog

from sllm import errors
from sllm.control.batches.book import BatchBook
from sllm.control.tasks import Tasks
from sllm.control.types.batches import Ended

log = structlog.get_logger()

_GATHER_SECONDS: Final = 0.05
"""For how long results gather: to store some costs about as much as to store one."""
_RETRY_SECONDS: Final = 1.0
_CLOSING_SECONDS: Final = 2.0
_MOST: Final = 1_024
"""Results that may wait to be stored; until there are fewer, nothing more is begun."""


class Recorder:
    """Belongs to the event loop."""

    def __init__(self, book: BatchBook) -> None:
        self._book = book
        self._tasks = Tasks()
        self._storing: asyncio.Task[None] | None = None
        self._waiting: dict[str, list[Ended]] = {}
        """By batch."""
        self._count = 0
        self._room = asyncio.Event()
        self._room.set()

    async def has_room(self) -> None:
        """Returns once more may be begun."""
        await self._room.wait()

    def add(self, batch_id: str, ended: Ended) -> None:
        """Takes a result in; it is stored soon."""
        self._waiting.setdefault(batch_id, []).append(ended)
        self._count += 1
        if self._count >= _MOST:
            self._room.clear()
        if self._storing is None or self._storing.done():
            self._storing = self._tasks.spawn(self._store(), name="store results")

    async def close(self) -> None:
        """Stores what has come, if that is possible; what is not stored is done again."""
        if self._storing and not self._storing.done():
            await asyncio.wait([self._storing], timeout=_CLOSING_SECONDS)
        await self._tasks.close()

    async def _store(self) -> None:
        while self._waiting:
            await asyncio.sleep(_GATHER_SECONDS)
            for batch_id in list(self._waiting):
                ended = self._waiting.pop(batch_id)
                await self._stored(batch_id, ended)
                self._count -= len(ended)
            if self._count < _MOST:
                self._room.set()

    async def _stored(self, batch_id: str, ended: list[Ended]) -> None:
        """Returns once they are, or cannot be. Others may change batches between two tries."""
        while True:
            try:
                await self._book.record(batch_id, ended)
                return
            except errors.StateUnavailable as error:
                log.warning("control.results_not_stored", batch=batch_id, error=error.message)
                await asyncio.sleep(_RETRY_SECONDS)
            except Exception as error:  # other batches' results are stored all the same
                log.error("control.results_lost", batch=batch_id, exc_info=error)
                return
