"""What tests of every kind share."""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable

POLL_SECONDS = 0.02


async def assert_eventually(
    check: Callable[[], object | Awaitable[object]], timeout: float = 10.0
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


def wait_until(check: Callable[[], object], timeout: float = 10.0) -> None:
    """The same for tests that are no coroutines."""
    deadline = time.monotonic() + timeout
    while not check():
        assert time.monotonic() < deadline, f"not within {timeout} s: {inspect.getsource(check)}"
        time.sleep(POLL_SECONDS)
