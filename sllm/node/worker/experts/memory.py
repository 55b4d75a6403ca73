"""Memory for the bytes of a checkpoint, of which some come and go while addresses stay."""

import ctypes
import errno
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from mmap import PAGESIZE
from pathlib import Path
from threading import Lock
from typing import Final, NamedTuple

from sllm import libc
from sllm.checkpoint.files.memory import reserve
from sllm.errors import NoCapacity

_MOST_MAPPED: Final = Path("/proc/sys/vm/max_map_count")
_OTHERS_MAPPED: Final = 8192
"""What libraries, stacks and arenas take, amply."""
_READ_WRITE: Final = libc.PROT_READ | libc.PROT_WRITE


@contextmanager
def _shortage_in_words() -> Iterator[None]:
    """Tells of a kernel that has no memory, or no mappings, as of what it is.

    Where memory was to be moved, what it should have replaced may be gone already: nothing here can
    go on, and whoever asked has to end.
    """
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOMEM:
            raise
        raise NoCapacity(
            "the kernel has no memory for experts, or their process has as many mappings as it may "
            "have: deploy with less expert_memory, give the node less (--memory), or raise "
            "vm.max_map_count"
        ) from error


class Span(NamedTuple):
    """Bytes of a partition."""

    partition: int
    begin: int
    end: int
    """One past the last."""


class SparseMemory:
    """The partitions of a checkpoint, each at addresses in one piece, in memory of this process.

    Until it is sealed all of it may be read, and is zero where nothing was written. Then spans are
    out of reach but for those that were brought: whoever touches another is ended by the kernel, so
    that nothing is computed of bytes that are not there. Any number of threads may use it.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        """Takes addresses, and no memory.

        Args:
            sizes: of the partitions, in bytes.

        Raises:
            OSError: the kernel refused.
        """
        self.starts = [0, *accumulate(-(-size // PAGESIZE) * PAGESIZE for size in sizes)]
        """Of each partition, in bytes from the first; and where the last one ends."""
        self._memory = reserve(max(self.starts[-1], PAGESIZE), _READ_WRITE)
        self.address = ctypes.addressof(self._memory)
        # What lies beside a span in a large page would take memory with it.
        libc.advise_small_pages(self.address, len(self._memory))
        self._holders = Counter[int]()
        """Of pages at the ends of spans that are there: neighbours may share one."""
        self._lock = Lock()
        self._moves = False

    @property
    def size_bytes(self) -> int:
        """Of the addresses."""
        return self.starts[-1]

    def buffer(self, partition: int) -> memoryview:
        """The bytes of a partition, writable."""
        view = memoryview(self._memory).cast("B")
        return view[self.starts[partition] : self.starts[partition + 1]]

    def address_of(self, partition: int, offset: int) -> int:
        """Where a byte of a partition is."""
        return self.address + self.starts[partition] + offset

    @_shortage_in_words()
    def seal(self, kept: Iterable[Span], spans: Iterable[Span]) -> None:
        """Puts spans out of reach; those that are `kept` stay for good.

        Raises:
            NoCapacity: they are more than a process may have mapped, or there is no memory.
            OSError: the kernel refused.
        """
        apart = list(spans)
        _check_count(len(apart))
        # Moved memory is a mapping of its own between its ends, however its neighbours are.
        self._moves = _may_map(3 * len(apart))
        with self._lock:
            for span in kept:
                self._holders.update(self._edges(span))
            for span in apart:
                self._put_away(span)

    @_shortage_in_words()
    def bring(self, span: Span) -> None:
        """Makes room for a span, which has any content until it is written.

        Raises:
            NoCapacity: there is no memory.
            OSError: the kernel refused.
        """
        first, last = self._pages(span)
        address, length = first * PAGESIZE, (last - first + 1) * PAGESIZE
        with self._lock:
            libc.mprotect(address, length, _READ_WRITE)
            self._holders.update(self._edges(span))
        libc.populate(address, length)

    @_shortage_in_words()
    def exchange(self, gone: Sequence[Span], coming: Sequence[Span]) -> None:
        """Drops spans and brings others, in the same memory as far as their pages match.

        Memory that is given back and taken anew is filled with zeros in between, which takes longer
        than a disk.

        Raises:
            NoCapacity: there is no memory, or not enough mappings.
            OSError: the kernel refused.
        """
        left = list(gone)
        pairs = [(self._take_alike(one, left), one) for one in coming]
        for span in left:
            self.drop(span)
        for former, span in pairs:
            if former is None or not self._move(former, span):
                if former is not None:
                    self.drop(former)
                self.bring(span)

    def _take_alike(self, span: Span, left: list[Span]) -> Span | None:
        """One of `left`, which has it no longer, with as many pages of its own. None: none has."""
        count = self._own_pages(span)[1]
        alike = (one for one in left if self._moves and self._own_pages(one)[1] == count > 0)
        if (found := next(alike, None)) is not None:
            left.remove(found)
        return found

    def _move(self, former: Span, span: Span) -> bool:
        """Whether a span stands in the memory of another now, which has none."""
        (from_page, count), (to_page, _) = self._own_pages(former), self._own_pages(span)
        with self._lock:
            try:
                libc.move_pages(from_page * PAGESIZE, count * PAGESIZE, to_page * PAGESIZE)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                self._moves = False  # Linux is older than 5.7
                return False
            self._holders.subtract(self._edges(former))
            self._put_away(former)
            self._holders.update(self._edges(span))
            ends = self._edges(span) - set(range(to_page, to_page + count))
            for page in ends:
                libc.mprotect(page * PAGESIZE, PAGESIZE, _READ_WRITE)
        for page in ends:
            libc.populate(page * PAGESIZE, PAGESIZE)
        return True

    def _own_pages(self, span: Span) -> tuple[int, int]:
        """The first page that nothing else has a part of, and how many there are."""
        begin = self.address_of(span.partition, span.begin)
        first = -(-begin // PAGESIZE)
        return first, max(0, (begin + span.end - span.begin) // PAGESIZE - first)

    @_shortage_in_words()
    def drop(self, span: Span) -> None:
        """Takes the memory of a span away that was brought.

        Raises:
            NoCapacity: there are not enough mappings.
            OSError: the kernel refused.
        """
        with self._lock:
            self._holders.subtract(self._edges(span))
            self._put_away(span)

    def _put_away(self, span: Span) -> None:
        first, last = self._pages(span)
        first += self._holders[first] > 0
        last -= last >= first and self._holders[last] > 0
        if first <= last:
            address, length = first * PAGESIZE, (last - first + 1) * PAGESIZE
            libc.mprotect(address, length, libc.PROT_NONE)
            libc.give_back(address, length)

    def _edges(self, span: Span) -> set[int]:
        return set(self._pages(span))

    def _pages(self, span: Span) -> tuple[int, int]:
        begin = self.address_of(span.partition, span.begin)
        return begin // PAGESIZE, (begin + span.end - span.begin - 1) // PAGESIZE


def pages_bytes(span: Span) -> int:
    """What a span takes at most, its shared pages included."""
    return (-(-span.end // PAGESIZE) - span.begin // PAGESIZE) * PAGESIZE


def _check_count(spans: int) -> None:
    """If every second span is there, each is a mapping of its own, and so is each gap."""
    if not _may_map(spans):
        raise NoCapacity(
            f"experts lie in {spans} places, which takes up to {spans + _OTHERS_MAPPED} mappings "
            "of memory, and the kernel lets a process have fewer: raise vm.max_map_count"
        )


def _may_map(count: int) -> bool:
    """Whether a process may have so many mappings beside those of libraries and the like."""
    return count + _OTHERS_MAPPED <= int(_MOST_MAPPED.read_text())
