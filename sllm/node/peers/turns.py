"""Turns at giving chunks and pages: a few at a time, so that each is whole soon."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from typing import Final

from sllm.clock import Clock

SIGN_SECONDS: Final = 0.5
"""Between two signs of life to those who wait."""
_TAKING_SECONDS: Final = 3.0
"""Whoever takes nothing for so long loses its turn to others."""
_YIELDED: Final = 3.0
"""Seconds that nothing is given, for each in which something is, while this node loads for
itself."""


class Turn:
    """One caller's. Belongs to the event loop."""

    def __init__(self, turns: asyncio.Semaphore) -> None:
        """`turns`: those that there are."""
        self._turns = turns
        self._is_held = False

    async def wait(self) -> AsyncGenerator[None]:
        """Ends once it is the caller's turn, at once where it still is; gives signs of life."""
        while not self._is_held:
            try:
                await asyncio.wait_for(self._turns.acquire(), SIGN_SECONDS)
                self._is_held = True
            except TimeoutError:
                yield

    @contextmanager
    def giving(self) -> Iterator[None]:
        """While the caller is given something: it may not take it, and hold up all others."""
        loss = asyncio.get_running_loop().call_later(_TAKING_SECONDS, self.release)
        try:
            yield
        finally:
            loss.cancel()

    async def pause(self, clock: Clock, began: float, *, is_busy: bool) -> AsyncGenerator[None]:
        """Ends once the caller may be given more; gives signs of life.

        Args:
            clock: by which it waits.
            began: when what the caller was given last was begun.
            is_busy: whether this node loads what a request of its own waits for.
        """
        left = _YIELDED * (clock.now() - began) if is_busy else 0.0
        while left > 0:
            await clock.sleep(min(left, SIGN_SECONDS))
            left -= SIGN_SECONDS
            yield
        async for _ in self.wait():
            yield

    def release(self) -> None:
        """Has others have their turns."""
        if self._is_held:
            self._is_held = False
            self._turns.release()
