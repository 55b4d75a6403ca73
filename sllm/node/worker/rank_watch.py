"""The ends of a model's other ranks: told to whoever works with them, whatever that makes of it."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

from sllm.errors import SllmError, WorkerDied
from sllm.node.worker.ranks import Process, Ranks

Result = TypeVar("Result")

RANK_END_SECONDS: Final = 1.0
"""What the end of another rank, which fails the engine as well, may take to be told."""


class RankWatch:
    """Belongs to the event loop."""

    def __init__(self, ranks: Ranks, fail: Callable[[Exception], None]) -> None:
        """Watches from now on.

        Args:
            ranks: of which any may end.
            fail: told how the first of them has ended.
        """
        self._ranks = ranks
        self._fail = fail
        self._loop = asyncio.get_running_loop()
        self._lost: asyncio.Future[WorkerDied] = self._loop.create_future()
        """How a rank has ended."""
        for one in ranks.processes:
            self._loop.add_reader(one.ended, self._lose, one)

    async def while_none_is_lost(self, work: Coroutine[None, None, Result]) -> Result:
        """What comes of work that all ranks do together.

        Raises:
            WorkerDied: Another rank has ended: that says more than what the work makes of it.
            Exception: As the work raises.
        """
        task = asyncio.ensure_future(work)
        try:
            either: list[asyncio.Future[Any]] = [task, self._lost]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if task.done() and self._may_be_lost(task.exception()):
                await asyncio.wait([self._lost], timeout=RANK_END_SECONDS)
            if self._lost.done():
                raise self._lost.result()
            return await task
        finally:
            task.cancel()

    def _may_be_lost(self, error: BaseException | None) -> bool:
        """Whether it may have come of the end of another rank, which is told elsewhere."""
        typed = isinstance(error, SllmError) and not isinstance(error, WorkerDied)
        return bool(error and self._ranks.processes) and not typed

    def fail_engine(self, error: Exception) -> None:
        """Fails; where a rank has ended, that says more than what the engine makes of it."""
        if self._ranks.processes:
            self._loop.call_later(RANK_END_SECONDS, self._fail, error)
        else:
            self._fail(error)

    def close(self) -> None:
        """Watches no more: they are to end, or one has."""
        for one in self._ranks.processes:
            self._loop.remove_reader(one.ended)

    def _lose(self, process: Process) -> None:
        self.close()
        end = self._ranks.end_of(process)
        if not self._lost.done():
            self._lost.set_result(end)
        self._fail(end)
