"""The latest of a series of values, followed by any number of readers."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Generic, TypeVar

T = TypeVar("T")


class Broadcast(Generic[T]):
    """One writer, many readers; a slow reader skips values and never holds up the writer."""

    def __init__(self) -> None:
        self._latest: T | None = None
        self._closed = False
        self._changed = asyncio.Event()

    def publish(self, value: T) -> None:
        """Makes `value` the latest."""
        self._latest = value
        self._wake()

    def close(self) -> None:
        """Ends every reader once it has seen the latest value."""
        self._closed = True
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def follow(self) -> AsyncGenerator[T]:
        """The latest value, and each that is the latest when the reader comes back."""
        seen: T | None = None
        while True:
            changed = self._changed
            if self._latest is not None and self._latest is not seen:
                seen = self._latest
                yield seen
            elif self._closed:
                return
            else:
                await changed.wait()
