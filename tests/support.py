"""What tests of every kind share."""

import asyncio
import inspect
import logging
import re
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from sllm import sending

POLL_SECONDS = 0.02
_PROBE_SECONDS = 0.001


async def assert_eventually(
    check: Callable[[], object | Awaitable[object]], timeout: float = 30.0
) -> None:
    """Returns once `check` gives something true; fails if it has not within `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        outcome = check()
        if inspect.isawaitable(outcome):
            outcome = await outcome
        if outcome:
            return
        assert time.monotonic() < deadline, f"not within {timeout} s: {inspect.getsource(check)}"
        await asyncio.sleep(POLL_SECONDS)


def wait_until(check: Callable[[], object], timeout: float = 30.0) -> None:
    """The same for tests that are no coroutines."""
    deadline = time.monotonic() + timeout
    while not check():
        assert time.monotonic() < deadline, f"not within {timeout} s: {inspect.getsource(check)}"
        time.sleep(POLL_SECONDS)


@contextmanager
def held_port() -> Iterator[int]:
    """A port for a server that comes later, or again: only who asks for it by number gets it."""
    with socket.socket() as bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


def tasks_beside_this() -> list[asyncio.Task[object]]:
    """The tasks that are under way beside the test's own and those of gRPC's servers."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    return [task for task in others if "AioServer." not in repr(task)]


@asynccontextmanager
async def sent(call: Any, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """Writes what an iterator gives to a call while one reads from it; both end on leaving.

    A call to which the iterator itself is given waits for it even after it has failed, and its
    task is lost with it.
    """

    async def write() -> None:
        async for request in requests:
            if not await sending.write(call, request):
                return  # the reader is told why
        await call.done_writing()

    writer = asyncio.create_task(write(), name="requests of a call")
    try:
        yield call
    finally:
        call.cancel()
        writer.cancel()
        await asyncio.wait([writer])


_OF_GRPCS_POLLER = "Exception in callback PollerCompletionQueue._handle_events"


class Complaints(logging.Handler):
    """What asyncio says of tasks that nobody waits for: they are lost, or fail unheard.

    gRPC's one poller of a process serves the loops of all tests, and at times wakes one that has
    ended with its test. That is no task of anybody's, and is not counted.
    """

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps a record."""
        line = self.format(record)
        if not (_OF_GRPCS_POLLER in line and str(_error(record)) == "Event loop is closed"):
            self.lines.append(line)


def _error(record: logging.LogRecord) -> BaseException | None:
    return record.exc_info[1] if record.exc_info else None


LEFT_BEHIND = re.compile(
    "Task was destroyed|never retrieved|was never awaited|Exception ignored in|"
    "Unhandled exception in|generator didn't stop|asynchronous generator is already running"
)
"""In a log: a task was left behind, or has failed and nobody has heard of it."""


class LoopLag:
    """How long the event loop was held up at most, while the block lasts.

    What it waits for a processor is not counted: that is other programs' doing.
    """

    def __init__(self) -> None:
        self.worst = 0.0
        """Seconds."""

    async def _watch(self) -> None:
        while True:
            before = _seconds_of_its_own()
            await asyncio.sleep(_PROBE_SECONDS)
            self.worst = max(self.worst, _seconds_of_its_own() - before - _PROBE_SECONDS)

    async def __aenter__(self) -> "LoopLag":
        self._task = asyncio.create_task(self._watch())
        await asyncio.sleep(2 * _PROBE_SECONDS)
        self.worst = 0.0
        return self

    async def __aexit__(self, *error: object) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])


def _seconds_of_its_own() -> float:
    """A clock that stands still while this thread is ready to run and another one runs."""
    _, waited_ns, _ = Path("/proc/thread-self/schedstat").read_text().split()
    return time.perf_counter() - int(waited_ns) / 1e9
