"""Memory that checkpoints are read into."""

import ctypes
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate

from sllm import libc
from sllm.checkpoint.format.manifest import BLOCK_BYTES, PartitionEntry
from sllm.clock import Clock, MonotonicClock

HUGE_PAGE_BYTES = 2 << 20
_PROBE_BYTES = 4 << 20
_FAST_BYTES_PER_SECOND = 1e9
"""Of one thread. Where the memory is the machine's own, it is several times as many."""
_READ_WRITE = libc.PROT_READ | libc.PROT_WRITE

ChunkMemory = Callable[[int, int], memoryview]
"""Gives the memory for a chunk of a partition, both by index: block-aligned, writable, touched,
and at least as large as the chunk in whole blocks. Called from any thread; each call gives a view
of its own."""


def reserve(size: int, protection: int) -> "ctypes.Array[ctypes.c_char]":
    """Addresses for `size` bytes, aligned for huge pages.

    They are unmapped when nothing refers to the array any more, nor to a buffer over it, be it a
    tensor.

    Args:
        size: bytes.
        protection: `libc.PROT_NONE`, if something will be mapped over them; or what may be done
            with the memory that takes their place as it is touched.

    Raises:
        OSError: the kernel refused.
    """
    reserved = size + HUGE_PAGE_BYTES
    flags = libc.MAP_PRIVATE | libc.MAP_ANONYMOUS | libc.MAP_NORESERVE
    reservation = libc.mmap(None, reserved, protection, flags, -1, 0)
    address = -(-reservation // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES
    memory = (ctypes.c_char * size).from_address(address)
    # At exit the kernel unmaps; doing it earlier would pull memory from under live tensors.
    weakref.finalize(memory, libc.munmap, reservation, reserved).atexit = False
    return memory


class Region:
    """Anonymous memory for the partitions of one checkpoint, each in one piece.

    It is taken as chunks are asked for, and given back when the region and the last buffer over it
    are gone.
    """

    def __init__(self, partitions: Sequence[PartitionEntry]) -> None:
        self._partitions = partitions
        total = sum(_aligned(entry.size, BLOCK_BYTES) for entry in partitions)
        # Small ones would each take a huge page, and addresses of which a process has not many.
        mapped = total >= HUGE_PAGE_BYTES
        step = HUGE_PAGE_BYTES if mapped else BLOCK_BYTES
        self._starts = [0, *accumulate(_aligned(entry.size, step) for entry in partitions)]
        size = self._starts[-1]
        self._memory = reserve(size, _READ_WRITE) if mapped else _block_aligned(size)
        self._pages = HugePages(ctypes.addressof(self._memory), size) if mapped else None

    def buffer(self, partition: int) -> memoryview:
        """The bytes of a partition."""
        start = self._starts[partition]
        return self._view(start, start + self._partitions[partition].size)

    def chunk(self, partition: int, index: int) -> memoryview:
        """The memory for a chunk, touched by the thread that asks for it."""
        self.touch(partition, index)
        return self.untouched_chunk(partition, index)

    def untouched_chunk(self, partition: int, index: int) -> memoryview:
        """The memory for a chunk, touched or not."""
        return self._view(*self._bounds(partition, index))

    def touch(self, partition: int, index: int) -> None:
        """Has the kernel back a chunk with memory."""
        if self._pages is not None:
            self._pages.touch(*self._bounds(partition, index))

    def _bounds(self, partition: int, index: int) -> tuple[int, int]:
        size = self._partitions[partition].chunk_size
        start = self._starts[partition] + index * size
        return start, min(start + size, self._starts[partition + 1])

    def _view(self, start: int, end: int) -> memoryview:
        return memoryview(self._memory).cast("B")[start:end]


class TouchedAhead:
    """A region that a few threads touch from its beginning, while others fill what is touched.

    Direct reads into fresh memory would do it page by page, and leave the disk waiting.
    """

    def __init__(self, region: Region, partitions: Sequence[PartitionEntry], threads: int) -> None:
        """Begins.

        Args:
            region: the memory.
            partitions: those that it was made for.
            threads: how many touch a chunk at a time.
        """
        self._region = region
        self._executor = ThreadPoolExecutor(threads, "chunk-touch")
        self._touched = {
            (partition, index): self._executor.submit(region.touch, partition, index)
            for partition, entry in enumerate(partitions)
            for index in range(-(-entry.size // entry.chunk_size))
        }

    def chunk(self, partition: int, index: int) -> memoryview:
        """The memory for a chunk, once it is touched."""
        self._touched[partition, index].result()
        return self._region.untouched_chunk(partition, index)

    def close(self) -> None:
        """Ends the threads; what nobody has asked for stays as it is."""
        self._executor.shutdown(cancel_futures=True)


class HugePages:
    """Fresh memory in huge pages, for as long as they come fast. For several threads.

    They are the better ones, unless the machine is a guest whose host takes large blocks of free
    memory back, and must find others for them: that is slower than a disk. Small pages mostly
    come from memory that was used before, and take its place then.
    """

    def __init__(self, address: int, size: int, clock: Clock | None = None) -> None:
        self._address = address
        self._size = size
        self._clock = clock or MonotonicClock()
        self._wanted = True
        libc.advise_huge_pages(address, size)

    def touch(self, start: int, end: int) -> None:
        """Has the kernel back the bytes from `start` to `end`."""
        while start < end:
            step = min(end, start + _PROBE_BYTES)
            began = self._clock.now()
            libc.populate(self._address + start, step - start)
            seconds = self._clock.now() - began
            if self._wanted and step - start < seconds * _FAST_BYTES_PER_SECOND:
                self._wanted = False
                libc.advise_small_pages(self._address, self._size)
            start = step


def _block_aligned(size: int) -> "ctypes.Array[ctypes.c_char]":
    whole = bytearray(size + BLOCK_BYTES)
    address = ctypes.addressof(ctypes.c_char.from_buffer(whole))
    return (ctypes.c_char * size).from_buffer(whole, -address % BLOCK_BYTES)


def _aligned(value: int, alignment: int) -> int:
    return -(-value // alignment) * alignment
