"""Bytes that are held for callers, all together."""

from sllm import errors
from sllm.config import format_bytes


class Held:
    """Counts them against a bound; belongs to the event loop."""

    def __init__(self, most: int, what: str) -> None:
        self._most = most
        self._what = what
        self.count = 0

    def take(self, count: int) -> None:
        """Holds more.

        Raises:
            errors.QueueFull: They would be too many; nothing is taken.
        """
        if self.count + count > self._most:
            most = format_bytes(self._most)
            raise errors.QueueFull(f"{self._what} of {most} are held, as many as may; try again")
        self.count += count

    def give(self, count: int) -> None:
        """Holds so many less."""
        self.count -= count
