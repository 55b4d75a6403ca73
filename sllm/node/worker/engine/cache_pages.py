"""Pages of an engine's cache, which leave it and come back beside the engine's thread.

Engines keep pages that no request refers to, and find them again by what is in them. What comes
back is put among those; what leaves is copied out of them. Bytes are copied in other threads than
the engine's, while the pages are nobody else's, or held. What the books of pages have to be told
takes microseconds, under a lock that the engine has while it changes them.
"""

import ctypes
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any, Final, Generic, TypeVar

import torch

from sllm.node.worker.engine.cache_share import Books, CacheShare, CacheUse
from sllm.node.worker.engine.interface import Capacity
from sllm.node.worker.engine.pace import Pace
from sllm.node.worker.engine.pages import PageLayout, Prefix

_COPY_SECONDS: Final = 5.0
"""What the engine waits at most for copies under way, if it can do nothing else."""

Name = TypeVar("Name")
"""By which an engine knows what is in a page."""


class CachePages(ABC, Generic[Name]):
    """See `EnginePages`; an engine's own books are below.

    What has to do with them is called with the lock held, but for `_names`.
    """

    _spare_rows = 0
    """Of the cache, beside those for as many tokens as it is to hold."""

    def __init__(self, layout: PageLayout) -> None:
        self.layout = layout
        self.pace = Pace()
        self._changed = threading.Condition(threading.RLock())
        """Guards the books. Its holder waits for nothing else."""
        self._copying = 0
        self._starved = False
        """Whether the engine waits for copies to end: none may begin."""
        self._held: dict[str, list[int]] = {}
        """Pages that were put in for requests which have not been scheduled."""
        self._on_end: Callable[[Prefix], None] = lambda _: None
        self._share: CacheShare | None = None

    @property
    def seconds_per_token(self) -> float | None:
        """See `EnginePages.seconds_per_token`."""
        return self.pace.seconds_per_token

    def subscribe(self, on_end: Callable[[Prefix], None]) -> None:
        """See `EnginePages.subscribe`."""
        self._on_end = on_end

    def share(self, capacity: Capacity) -> None:
        """Begins with the share that a capacity says, before the engine's first step."""
        if not capacity.more_kv_tokens:
            return
        books = Books(self._allocate, self._release, self._free, self._promised, self._memory)
        size, least = self.layout.tokens, capacity.least_kv_tokens
        least = max(-(-least // size), least // size + self._spare_rows)
        self._share = CacheShare(books, self._free(), least)
        self.resize(capacity.kv_tokens // self.layout.tokens * self.layout.size_bytes)

    @property
    def resizes(self) -> bool:
        """Whether the cache can be made larger and smaller."""
        return self._share is not None

    def resize(self, share_bytes: int) -> CacheUse:
        """Says what a cache that `resizes` may take from now on; gives what it has. In any thread.

        What exceeds that is given up as requests end, before others begin.
        """
        share = self._share
        assert share is not None, "the cache's size is fixed"
        with self._changed:
            share.target = share_bytes // self.layout.size_bytes + self._spare_rows
            share.settle()
            return CacheUse(*map(self._bytes, (share.now, share.least, share.used)))

    def settle(self) -> bool:
        """Gives up what is to be given up, and may be; whether no request is to begin before.

        In the engine's thread, with the lock held.
        """
        if self._share is None:
            return False
        self._share.settle()
        return self._share.is_owed

    @property
    def shared_part(self) -> float:
        """The share, as a part of all rows."""
        return self._share.part if self._share else 1.0

    def _bytes(self, rows: int) -> int:
        return max(0, rows - self._spare_rows) * self.layout.size_bytes

    def present(self, prefix: Prefix) -> int:
        """See `EnginePages.present`."""
        names = self._names(prefix, len(prefix.tokens) // self.layout.tokens)
        with self._changed:
            return next((n for n, name in enumerate(names) if not self._has(name)), len(names))

    def put(self, prefix: Prefix, first: int, pages: Sequence[memoryview], holder: str) -> int:
        """See `EnginePages.put`."""
        names = self._names(prefix, first + len(pages))[first:]
        with self._copies() as may:
            rows = self._take(len(pages)) if may else []
            try:
                for row, page in zip(rows, pages, strict=False):
                    self._write(row, page)
            except BaseException:
                with self._changed:
                    self._release(rows)
                raise
            with self._changed:
                entered = zip(rows, names, strict=False)
                held = [self._enter(*one, first + n) for n, one in enumerate(entered)]
                self._held.setdefault(holder, []).extend(held)
        return len(rows)

    def let_go(self, holder: str) -> None:
        """See `EnginePages.let_go`."""
        with self._changed:
            self._release(self._held.pop(holder, ()))

    def copy(self, prefix: Prefix, wanted: Sequence[int], into: Sequence[memoryview]) -> list[bool]:
        """See `EnginePages.copy`."""
        names = self._names(prefix, max(wanted, default=-1) + 1)
        with self._copies() as may:
            rows = self._hold([names[index] for index in wanted]) if may else [None] * len(wanted)
            try:
                for row, memory in zip(rows, into, strict=True):
                    if row is not None:
                        self._read(row, memory)
            finally:
                with self._changed:
                    self._release([row for row in rows if row is not None])
        return [row is not None for row in rows]

    def make_room(self) -> bool:
        """Lets go of all that was put in, and of what is copied; whether there was anything.

        In the engine's thread, when a request lacks room.
        """
        with self._changed:
            if not (self._held or self._copying):
                return False
            self._starved = True
            self._changed.wait_for(lambda: not self._copying, _COPY_SECONDS)
            self._starved = False
            for holder in list(self._held):
                self.let_go(holder)
            return True

    @contextmanager
    def changing(self) -> Iterator[None]:
        """The lock, for as long as the engine changes its books."""
        with self._changed:
            yield

    def guarded(self, change: Callable[..., Any]) -> Callable[..., Any]:
        """What changes the engine's books, under the lock."""

        @wraps(change)
        def under_lock(*args: Any, **kwargs: Any) -> Any:
            with self._changed:
                return change(*args, **kwargs)

        return under_lock

    @contextmanager
    def _copies(self) -> Iterator[bool]:
        """Counts copying that is under way; whether there may be any."""
        with self._changed:
            may = not self._starved
            self._copying += may
        try:
            yield may
        finally:
            with self._changed:
                self._copying -= may
                self._changed.notify_all()

    def _take(self, count: int) -> list[int]:
        with self._changed:
            return self._allocate(count)

    def _hold(self, names: Sequence[Name]) -> list[int | None]:
        """The rows of pages, which stay there; None for those that are not."""
        with self._changed:
            return [self._acquire(name) for name in names]

    # --- the engine's books ---------------------------------------------------------------------

    @abstractmethod
    def _names(self, prefix: Prefix, count: int) -> list[Name]:
        """What the engine calls the first pages of a prefix."""

    @abstractmethod
    def _has(self, name: Name) -> bool:
        """Whether a page is in the cache."""

    @abstractmethod
    def _acquire(self, name: Name) -> int | None:
        """The row of a page that is whole, which stays until `_release`. None: it is not there."""

    @abstractmethod
    def _allocate(self, count: int) -> list[int]:
        """Rows for so many pages, or for fewer, if there are not as many."""

    @abstractmethod
    def _free(self) -> int:
        """Rows that `_allocate` could give."""

    @abstractmethod
    def _promised(self) -> int:
        """Rows that requests may come to need at most, of those that have any."""

    @abstractmethod
    def _memory(self) -> Iterable[torch.Tensor]:
        """What the cache is in, each [rows, bytes], on the CPU."""

    @abstractmethod
    def _enter(self, row: int, name: Name, index: int) -> int:
        """Has the page of this index be found; gives its row, or that of the same page, held."""

    @abstractmethod
    def _release(self, rows: Sequence[int]) -> None:
        """Ends a hold of each, or gives up what was allocated and not entered."""

    @abstractmethod
    def _write(self, row: int, page: memoryview) -> None:
        """Fills a row that is nobody else's; without the lock."""

    @abstractmethod
    def _read(self, row: int, memory: memoryview) -> None:
        """Copies a row that is held; without the lock."""


def write_bytes(target: torch.Tensor, page: memoryview) -> None:
    """Copies memory into a tensor of as many bytes, uint8 and contiguous."""
    if target.device.type == "cpu":  # without torch's threads, and without the GIL
        source = (ctypes.c_char * len(page)).from_buffer(page)
        ctypes.memmove(target.data_ptr(), source, len(page))
    else:
        target.copy_(torch.frombuffer(page, dtype=torch.uint8))


def read_bytes(source: torch.Tensor, memory: memoryview) -> None:
    """Copies a tensor, uint8 and contiguous, into memory of as many bytes."""
    if source.device.type == "cpu":
        target = (ctypes.c_char * len(memory)).from_buffer(memory)
        ctypes.memmove(target, source.data_ptr(), len(memory))
    else:
        torch.frombuffer(memory, dtype=torch.uint8).copy_(source)
