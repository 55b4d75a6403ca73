"""Turns at giving chunks: a few at a time, so that each is whole soon."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from typing import Final

SIGN_SECONDS: Final = 0.5
"""Between two signs of life to those who wait."""
_TAKING_SECONDS: Final = 3.0
"""Whoever takes nothing for so long loses its turn to others."""


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

    def release(self) -> None:
        """Has others have their turns."""
        if self._is_held:
            self._is_held = False
            self._turns.release()
