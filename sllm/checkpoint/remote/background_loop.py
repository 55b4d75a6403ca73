"""An event loop in a thread of its own, for threads that wait for the network."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar

from sllm.errors import Cancelled

_POLL_SECONDS = 0.1
"""How soon work notices that it is to end."""

_Result = TypeVar("_Result")


class BackgroundLoop:
    """Runs coroutines for any number of threads. Its own thread starts with the first of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def run(
        self, work: Coroutine[Any, Any, _Result], cancelled: Callable[[], bool] = lambda: False
    ) -> _Result:
        """The result of `work`. When this returns or raises, none of it is running any more.

        Raises:
            Cancelled: `cancelled`, which is asked in the loop, said so.
        """
        watched = _watched(work, cancelled)
        return asyncio.run_coroutine_threadsafe(watched, self._running()).result()

    def _running(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(
                    target=self._loop.run_forever, name="remote-io", daemon=True
                )
                self._thread.start()
            return self._loop

    def close(self) -> None:
        """Ends the thread. Nothing may be running."""
        if self._loop is None or self._thread is None:
            return
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._loop = self._thread = None


async def _watched(work: Coroutine[Any, Any, _Result], cancelled: Callable[[], bool]) -> _Result:
    task = asyncio.ensure_future(work)
    while not task.done():
        await asyncio.wait([task], timeout=_POLL_SECONDS)
        if not task.done() and cancelled():
            task.cancel()
            await asyncio.wait([task])
            raise Cancelled("the transfer was cancelled")
    return task.result()


async def side_by_side(works: Iterable[Coroutine[Any, Any, _Result]]) -> list[_Result]:
    """The results of all works, in their order. If one fails, the others are cancelled.

    Raises:
        Exception: what the first that failed did so with.
    """
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work) for work in works]
    except BaseExceptionGroup as failures:
        first = failures.exceptions[0]
    else:
        return [task.result() for task in tasks]
    raise first  # out here, where it keeps its own cause
