"""Threads for the work on prompts: a long one holds no short ones up."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Outcome = TypeVar("Outcome")

SHORT_BYTES: Final = 16 * 1024
"""A prompt of so many bytes is tokenized in some milliseconds."""


class Lanes:
    """One thread for short prompts and one for long ones, in which each waits for its turn.

    Work that was given up before its turn is not done; work that was begun is, but nobody waits
    for it. How long it takes is bounded by the size of requests.
    """

    def __init__(self) -> None:
        self._short = ThreadPoolExecutor(1, "tokenize")
        self._long = ThreadPoolExecutor(1, "tokenize-long")

    async def run(
        self,
        size_bytes: int,
        work: Callable[Arguments, Outcome],
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> Outcome:
        """Does work on a prompt of a size, off the event loop."""
        lane = self._short if size_bytes <= SHORT_BYTES else self._long
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(lane, lambda: work(*args, **kwargs))

    def close(self) -> None:
        """Takes no more, and drops what waits."""
        for lane in (self._short, self._long):
            lane.shutdown(wait=False, cancel_futures=True)
