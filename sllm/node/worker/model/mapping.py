"""A contiguous view of chunks that lie scattered in the pool, for the process that reads them."""

import ctypes
from collections.abc import Iterator, Sequence
from itertools import accumulate

from sllm import libc
from sllm.checkpoint.files.memory import reserve


class Mapping:
    """Partitions of a checkpoint, each in one piece, over one range of addresses.

    Writes stay private to the process: the first one copies its page. The memory is unmapped
    once the mapping is closed and nothing refers to its buffers any more, be it a tensor.
    """

    def __init__(
        self, address: int, starts: Sequence[int], memory: "ctypes.Array[ctypes.c_char]"
    ) -> None:
        self.address = address
        self.size_bytes = starts[-1]
        self._starts = starts
        self._memory: ctypes.Array[ctypes.c_char] | None = memory

    def buffer(self, partition: int) -> memoryview:
        """The bytes of a partition's chunks; those after its end have no meaning.

        Raises:
            ValueError: the mapping is closed.
        """
        if self._memory is None:
            raise ValueError("the mapping is closed")
        start, end = self._starts[partition], self._starts[partition + 1]
        return memoryview(self._memory).cast("B")[start:end]

    def close(self) -> None:
        """Lets go of the memory; it is unmapped when the last buffer over it is gone."""
        self._memory = None


def map_chunks(fd: int, chunk_bytes: int, partitions: Sequence[Sequence[int]]) -> Mapping:
    """Maps the chunks of partitions side by side, in their order.

    Args:
        fd: the pool's memfd; it may be closed afterwards.
        chunk_bytes: the pool's.
        partitions: for each, its chunks in the pool.

    Raises:
        OSError: the kernel refused a mapping.
    """
    starts = [0, *accumulate(len(chunks) * chunk_bytes for chunks in partitions)]
    memory = reserve(starts[-1], libc.PROT_NONE)
    address = ctypes.addressof(memory)
    _fill(address, fd, chunk_bytes, [chunk for chunks in partitions for chunk in chunks])
    return Mapping(address, starts, memory)


def _fill(address: int, fd: int, chunk_bytes: int, chunks: Sequence[int]) -> None:
    protection = libc.PROT_READ | libc.PROT_WRITE
    flags = libc.MAP_PRIVATE | libc.MAP_FIXED | libc.MAP_NORESERVE
    for first, count in _runs(chunks):
        libc.mmap(address, count * chunk_bytes, protection, flags, fd, first * chunk_bytes)
        address += count * chunk_bytes


def _runs(chunks: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Neighbours in the pool as (first chunk, count): one call maps them all."""
    start = 0
    for end in range(1, len(chunks) + 1):
        if end == len(chunks) or chunks[end] != chunks[end - 1] + 1:
            yield chunks[start], end - start
            start = end
