"""The DRAM tier's memory: one memfd of fixed size, cut into chunks."""

import bisect
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from sllm import libc
from sllm.checkpoint.format.manifest import BLOCK_BYTES, CHUNK_BYTES
from sllm.errors import InvalidArgument
from sllm.node.tiers.shared_memory import share
from sllm.process import give_way

_TOUCH_BYTES = 2 << 20
"""Backed with memory by one call. The kernel holds a lock of the process meanwhile, for which
whoever maps or unmaps memory waits: the event loop, too."""


class Pool:
    """Chunks of shared memory, which workers map by `fd`.

    Fixed-size chunks leave no fragmentation, and make accounting exact.

    Threads: `try_allocate`, `free`, `undisturbed`, `start_populating`, `check_integrity` and
    `close` belong to one thread, that of the agent's event loop. `view` and `touch` may be called
    from any thread, for chunks that are allocated. Nothing guards a chunk's bytes: whoever
    allocated it decides who reads and who writes.
    """

    def __init__(
        self,
        capacity_bytes: int,
        chunk_bytes: int = CHUNK_BYTES,
        *,
        huge_pages: bool = True,
    ) -> None:
        """Reserves addresses; memory is taken as it is touched.

        Args:
            capacity_bytes: rounded down to whole chunks.
            chunk_bytes: a multiple of `BLOCK_BYTES`.
            huge_pages: whether it lies in huge pages where the kernel gives them.

        Raises:
            InvalidArgument: there is not room for one chunk, or chunks are not whole blocks.
        """
        if chunk_bytes <= 0 or chunk_bytes % BLOCK_BYTES:
            raise InvalidArgument(f"chunk_bytes={chunk_bytes} is not a multiple of {BLOCK_BYTES}")
        if capacity_bytes < chunk_bytes:
            raise InvalidArgument(
                f"a pool of {capacity_bytes} bytes holds no {chunk_bytes}-byte chunk"
            )
        self.chunk_bytes = chunk_bytes
        self.chunk_count = capacity_bytes // chunk_bytes
        self.capacity_bytes = self.chunk_count * chunk_bytes
        shared = share("sllm-pool", self.capacity_bytes, chunk_bytes, huge=huge_pages)
        self.fd = shared.fd
        self.pages = shared.pages
        """What its memory consists of."""
        self._mmap = shared.mapped
        self._memory = memoryview(self._mmap)
        self._address = shared.address
        self._free = list(range(self.chunk_count))
        self._touched = bytearray(self.chunk_count)
        self._closing = threading.Event()
        self._populating: threading.Thread | None = None
        self._loads = 0
        self._quiet = threading.Event()
        self._quiet.set()

    @property
    def used_bytes(self) -> int:
        """Bytes of the chunks that are allocated."""
        return self.capacity_bytes - len(self._free) * self.chunk_bytes

    def try_allocate(self, count: int) -> tuple[int, ...] | None:
        """Takes `count` chunks, or none at all if there are not as many.

        Lowest first: those are populated first, and neighbours are mapped by one call.
        """
        if count > len(self._free):
            return None
        taken = tuple(self._free[:count])
        del self._free[:count]
        return taken

    def free(self, chunks: Sequence[int]) -> None:
        """Gives chunks back. Their memory stays with the pool.

        Raises:
            ValueError: a chunk is not allocated.
        """
        for chunk in chunks:
            place = bisect.bisect_left(self._free, chunk)
            if not 0 <= chunk < self.chunk_count or self._free[place : place + 1] == [chunk]:
                raise ValueError(f"chunk {chunk} is not allocated")
            self._free.insert(place, chunk)

    @property
    def base_address(self) -> int:
        """Of the first chunk; the others follow without a gap."""
        return self._address

    def address_of(self, chunk: int) -> int:
        """Where a chunk begins."""
        return self._address + chunk * self.chunk_bytes

    def view(self, chunk: int) -> memoryview:
        """The bytes of a chunk, writable."""
        start = chunk * self.chunk_bytes
        return self._memory[start : start + self.chunk_bytes]

    def touch(self, chunk: int) -> None:
        """Makes the kernel give a chunk its memory, unless it has some.

        Direct I/O into memory that was never touched is many times slower than touching it in
        one call and reading then.
        """
        if self._touched[chunk]:
            return
        start = self.address_of(chunk)
        for offset in range(0, self.chunk_bytes, _TOUCH_BYTES):
            libc.populate(start + offset, min(_TOUCH_BYTES, self.chunk_bytes - offset))
        self._touched[chunk] = True

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Lets populating pause: for a load, which touches the chunks that it was given itself."""
        self._loads += 1
        self._quiet.clear()
        try:
            yield
        finally:
            self._loads -= 1
            if not self._loads:
                self._quiet.set()

    def start_populating(self) -> None:
        """Touches all chunks, lowest first, in a thread of its own that `close` stops."""
        self._populating = threading.Thread(
            target=self._populate, name="pool-populate", daemon=True
        )
        self._populating.start()

    def _populate(self) -> None:
        give_way()
        for chunk in range(self.chunk_count):
            self._quiet.wait()
            if self._closing.is_set():
                return
            self.touch(chunk)

    def check_integrity(self) -> None:
        """Raises AssertionError if the list of free chunks contradicts itself."""
        assert self._free == sorted(set(self._free)), "free chunks are not distinct and in order"
        assert all(0 <= chunk < self.chunk_count for chunk in self._free), "a free chunk is none"
        assert os.fstat(self.fd).st_size == self.capacity_bytes, "the memfd changed its size"

    def close(self) -> None:
        """Gives the memory back to the system, except what workers still map.

        A view that is still referred to keeps all of it until it is gone.
        """
        self._closing.set()
        self._quiet.set()
        if self._populating is not None:
            self._populating.join()
        self._memory.release()
        with suppress(BufferError):  # somebody still has a view; it ends with that
            self._mmap.close()
        os.close(self.fd)
