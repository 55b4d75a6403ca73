"""Loads that are under way, those who wait for them, and the threads that carry them out."""

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any, Generic, TypeVar

from sllm.errors import Cancelled, ShuttingDown
from sllm.node.records import LoadPhase, Progress, Tier

Result = TypeVar("Result")

Tell = Callable[[Progress], None]
"""Told how far a load is; called in the event loop."""

_THREADS = 8
"""Loads that can move bytes at once; more wait."""


class Load(Generic[Result]):
    """Work that several may join. It goes on whoever leaves. Belongs to the event loop."""

    def __init__(self, phase: LoadPhase, from_tier: Tier, changed: Callable[[], None]) -> None:
        self.progress = Progress(phase, from_tier, loaded_bytes=0, total_bytes=0)
        self.joined = 0
        """How many wait for it."""
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

    async def join(self, tell: Tell) -> Result:
        """Waits for the result, and is told of the progress until then.

        Raises:
            SllmError: what the work failed with.
        """
        assert self._task is not None, "the work has not begun"
        self.joined += 1
        self._listeners.append(tell)
        tell(self.progress)
        return await asyncio.shield(self._task)

    def report(self, loaded_bytes: int, total_bytes: int) -> None:
        """Tells everybody how far the work is."""
        phase, from_tier = self.progress.phase, self.progress.from_tier
        self.progress = Progress(phase, from_tier, loaded_bytes, total_bytes)
        for tell in self._listeners:
            tell(self.progress)
        self._changed()

    def reporter(self) -> Callable[[int, int], object]:
        """`report` for a thread; what it reports arrives before the thread's result does."""
        loop = asyncio.get_running_loop()
        return lambda loaded, total: loop.call_soon_threadsafe(self.report, loaded, total)


class Movers:
    """Threads for work that would block the event loop."""

    def __init__(self, threads: int = _THREADS) -> None:
        self._threads = ThreadPoolExecutor(threads, "checkpoint-move")
        self.closing = Event()
        """Once it is set, work that checks it ends with Cancelled."""

    async def run(self, work: Callable[[], Result]) -> Result:
        """The result of `work`, done in a thread.

        Raises:
            ShuttingDown: `close` ended it.
        """
        if self.closing.is_set():
            raise ShuttingDown("the node is going down")
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        except Cancelled:
            raise ShuttingDown("the node went down during the load") from None

    def stop(self) -> None:
        """Ends work that is under way, and refuses more."""
        self.closing.set()

    def close(self) -> None:
        """Ends the threads. All work must have ended."""
        self._threads.shutdown()
