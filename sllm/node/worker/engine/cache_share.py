"""How much of a cache its engine may use, while that changes.

An engine's cache has addresses for more pages than memory was set aside for. Those beyond its share
are withheld: to the engine they are in use, and they take no memory.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from mmap import PAGESIZE

import torch

from sllm import libc


@dataclass(frozen=True, slots=True)
class Books:
    """An engine's own books of the rows of its cache, each of which holds a page."""

    allocate: Callable[[int], list[int]]
    """Gives so many rows, or fewer, if not as many are free; what nobody uses goes for them."""
    release: Callable[[Sequence[int]], None]
    """Takes them back."""
    free: Callable[[], int]
    """Rows that `allocate` could give."""
    promised: Callable[[], int]
    """Rows that requests may come to need at most, of those that have any."""
    memory: Callable[[], Iterable[torch.Tensor]]
    """What the cache is in, each [rows, bytes]."""


@dataclass(frozen=True, slots=True)
class CacheUse:
    """What a cache has, and what it needs of that."""

    share_bytes: int
    """That it may take."""
    least_bytes: int
    """That it cannot give up now: requests that run may come to need it, or one of the longest."""
    used_bytes: int
    """That requests have."""


class CacheShare:
    """The share of one cache, in rows. Whoever calls it holds the lock that guards the books."""

    def __init__(self, books: Books, rows: int, least: int) -> None:
        """All rows are the engine's.

        Args:
            books: of the cache.
            rows: of it.
            least: that one request may need.
        """
        self.target = rows
        """What the share is to become."""
        self._books = books
        self._rows = rows
        self._least = least
        self._withheld: list[int] = []

    @property
    def now(self) -> int:
        """Rows that the engine has."""
        return self._rows - len(self._withheld)

    @property
    def part(self) -> float:
        """The same, as a part of all rows."""
        return self.now / self._rows

    @property
    def used(self) -> int:
        """Of these, rows that requests refer to."""
        return self.now - self._books.free()

    @property
    def least(self) -> int:
        """Of these, rows that cannot be given up: requests that run may come to need them."""
        needed = max(self.used, self._books.promised())
        return min(self.now, max(self._least, needed))

    @property
    def is_owed(self) -> bool:
        """Whether rows are given up once requests have ended: none is to begin before."""
        return self.now > self.target and self._books.promised() > 0

    def settle(self) -> None:
        """Brings the share towards its target, as far as that takes nothing from any request."""
        target = max(self.target, self.least)
        if self.now > target:
            taken = self._books.allocate(self.now - target)
            for memory in self._books.memory():
                forget(memory, taken)
            self._withheld += taken
        elif self.now < target and self._withheld:
            given = self._withheld[self.now - target :]
            del self._withheld[self.now - target :]
            self._books.release(given)


def forget(memory: torch.Tensor, rows: Sequence[int]) -> None:
    """Gives the memory of rows back to the kernel; they are zeros when they are used again.

    Args:
        memory: [rows, bytes], on the CPU.
        rows: of it. What they share a page of memory with stays.
    """
    base, stride = memory.data_ptr(), memory.stride(0)
    for first, last in _runs(rows):
        begin = -(-(base + first * stride) // PAGESIZE) * PAGESIZE
        end = (base + last * stride + memory.shape[1]) // PAGESIZE * PAGESIZE
        if begin < end:
            libc.madvise(begin, end - begin, libc.MADV_DONTNEED)


def _runs(rows: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Rows that follow one another: the first of them and the last."""
    # Within a run, a row and its place in the order differ by the same number.
    for _, run in groupby(enumerate(sorted(rows)), lambda one: one[1] - one[0]):
        members = [row for _, row in run]
        yield members[0], members[-1]
