"""Loads that are under way, those who wait for them, and the threads that carry them out."""

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Event
from typing import Any, Generic, TypeVar

from sllm.errors import Cancelled, ShuttingDown
from sllm.node.tiers.ledger import Holding
from sllm.node.tiers.types import Tier
from sllm.node.transfers.work import LoadPhase, Priority, Progress

Result = TypeVar("Result")

Tell = Callable[[Progress], None]
"""Told how far a load is; called in the event loop."""

_THREADS = 8
"""Loads that can move bytes at once; more wait."""


_REPORTED_STEPS = 20
"""Changes that a load makes known to others than those who wait for it, at most."""


class Load(Generic[Result]):
    """Work that several may join. Belongs to the event loop.

    It ends early only when all who have joined it were cancelled.
    """

    def __init__(
        self,
        phase: LoadPhase,
        from_tier: Tier,
        changed: Callable[[], None],
        priority: Priority = Priority.DEMAND,
    ) -> None:
        self.progress = Progress(phase, from_tier, loaded_bytes=0, total_bytes=0)
        self.priority = priority
        """The highest of those who have joined."""
        self.abandoned = False
        """Whether nobody needs it any more: the work is to end, and nobody may join."""
        self._joined = 0
        self._holding: Holding | None = None
        self._changed = changed
        self._listeners: list[Tell] = []
        self._task: asyncio.Task[Result] | None = None

    @property
    def remaining_bytes(self) -> int:
        """Bytes still to move, as far as that is known."""
        return self.progress.total_bytes - self.progress.loaded_bytes

    def begin(self, work: Coroutine[Any, Any, Result]) -> None:
        """Starts the work; once, and before the first `join`."""
        self._task = asyncio.create_task(work)
        self._task.add_done_callback(_note_error)

    async def join(self, tell: Tell, priority: Priority) -> Result:
        """Waits for the result, and is told of the progress until then.

        The caller then has a lease on what the work has left, unless it was cancelled.

        Raises:
            SllmError: what the work failed with.
        """
        assert self._task is not None, "the work has not begun"
        assert not self.abandoned, "the work is about to end"
        self.priority = min(self.priority, priority)
        self._joined += 1
        if self._holding is not None:
            self._holding.leases += 1
        self._listeners.append(tell)
        tell(self.progress)
        try:
            return await asyncio.shield(self._task)
        except asyncio.CancelledError:
            self._leave(tell)
            raise

    def _leave(self, tell: Tell) -> None:
        self._listeners.remove(tell)
        self._joined -= 1
        if self._holding is not None:
            self._holding.leases -= 1
        self.abandoned = not self._joined and self._holding is None
        self._changed()

    async def ended(self) -> None:
        """Returns when the work has ended, however it has."""
        assert self._task is not None, "the work has not begun"
        await asyncio.wait([self._task])

    def land(self, holding: Holding) -> None:
        """Leases what the work has left for all who have joined, and for those who still will."""
        self._holding = holding
        holding.leases += self._joined

    def report(self, loaded_bytes: int, total_bytes: int) -> None:
        """Tells everybody how far the work is."""
        before = self.progress
        self.progress = Progress(before.phase, before.from_tier, loaded_bytes, total_bytes)
        for tell in self._listeners:
            tell(self.progress)
        if _share(self.progress) != _share(before):
            self._changed()

    def advance(self, size_bytes: int) -> None:
        """Tells everybody that so many bytes more have arrived."""
        self.report(self.progress.loaded_bytes + size_bytes, self.progress.total_bytes)

    def reporter(self) -> Callable[[int, int], object]:
        """`report` for a thread; what it reports arrives before the thread's result does."""
        loop = asyncio.get_running_loop()
        return lambda loaded, total: loop.call_soon_threadsafe(self.report, loaded, total)


class Threads:
    """Threads for work that would block the event loop."""

    def __init__(self, threads: int = _THREADS) -> None:
        self._executor = ThreadPoolExecutor(threads, "checkpoint-move")
        self.closing = Event()
        """Once it is set, work that checks it ends with Cancelled."""

    async def run(self, work: Callable[[], Result]) -> Result:
        """The result of `work`, done in a thread.

        Raises:
            ShuttingDown: `close` ended it.
            Cancelled: the work itself had a reason to end early.
        """
        if self.closing.is_set():
            raise ShuttingDown("the node is going down")
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, work)
        except Cancelled as error:
            if not self.closing.is_set():
                raise
            raise ShuttingDown("the node went down during the load") from error

    async def run_to_end(self, work: Callable[[], Result], end: Callable[[], bool]) -> Result:
        """As `run`, of work that uses what its caller holds: that waits for its end in any case.

        A caller that is cancelled, however often, has the work end, and is cancelled then.

        Args:
            work: what is done.
            end: has it end soon; whether it had begun. Otherwise it does nothing any more.
        """
        running = asyncio.create_task(self.run(work))
        running.add_done_callback(_note_error)
        try:
            return await asyncio.shield(running)
        finally:
            if not end():
                running.cancel()  # it waits for its turn
            while not running.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([running])

    def stop(self) -> None:
        """Ends work that is under way, and refuses more."""
        self.closing.set()

    def close(self) -> None:
        """Ends the threads. All work must have ended."""
        self._executor.shutdown()


def _share(progress: Progress) -> int:
    """How far a load is, in the steps in which it is reported: each costs a look at all tiers."""
    return progress.loaded_bytes * _REPORTED_STEPS // max(progress.total_bytes, 1)


def _note_error(task: "asyncio.Task[Any]") -> None:
    """Looks at an error, so that asyncio does not warn of it when nobody waits for the load."""
    if not task.cancelled():
        task.exception()
