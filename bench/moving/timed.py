"""Generations whose tokens are timed as they come."""

import asyncio
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import pairwise

import sllm
from sllm import errors

WAIT_SECONDS = 300.0
"""Time that a generation has to come as far as it is waited for."""


class Timed:
    """One generation, read in the background from the beginning on."""

    def __init__(self, stream: sllm.AsyncStream) -> None:
        self.request_id = stream.request_id
        self.token_ids: list[int] = []
        """All its tokens so far."""
        self.moved_at: int | None = None
        """How many tokens there were when it had moved. None: it has not."""
        self._stream = stream
        self._times: list[float] = []
        """When tokens came; some may have come together."""
        self._over = False
        self._grown = asyncio.Event()
        self._reading = asyncio.create_task(self._read())

    async def until(self, tokens: int) -> None:
        """Returns once there are so many tokens, or no more come.

        Raises:
            errors.SllmError: Why it has failed.
            TimeoutError: It takes too long.
        """
        await self._reach(lambda: len(self.token_ids) >= tokens)

    async def until_after_move(self, tokens: int) -> None:
        """The same once there are so many tokens from after its move."""
        await self._reach(
            lambda: self.moved_at is not None and len(self.token_ids) >= self.moved_at + tokens
        )

    def gaps_since(self, moment: float) -> list[float]:
        """Seconds between its tokens, from the last that came before `moment` on."""
        before = [time for time in self._times if time <= moment][-1:]
        times = before + [time for time in self._times if time > moment]
        return [later - earlier for earlier, later in pairwise(times)]

    async def leave(self) -> None:
        """Ends it where it is."""
        await self._stream.cancel()
        with suppress(errors.Cancelled):
            await self._reading

    async def _reach(self, reached: Callable[[], bool]) -> None:
        async with asyncio.timeout(WAIT_SECONDS):
            while not (reached() or self._over):
                self._grown.clear()
                await self._grown.wait()
        if self._reading.done():
            self._reading.result()

    async def _read(self) -> None:
        try:
            async for event in self._stream:
                if isinstance(event, sllm.Migrated):
                    self.moved_at = len(self.token_ids)
                elif isinstance(event, sllm.Tokens):
                    self._times.append(time.monotonic())
                    self.token_ids += event.token_ids
                self._grown.set()
        finally:
            self._over = True
            self._grown.set()


async def all_until(streams: Iterable[Timed], tokens: int) -> None:
    """Returns once each has so many tokens, or has ended."""
    await asyncio.gather(*(one.until(tokens) for one in streams))
