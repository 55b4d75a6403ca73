"""A contiguous view of chunks that lie scattered in the pool, for the process that reads them."""

import ctypes
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from sllm import libc
from sllm.checkpoint.files.memory import reserve


@dataclass(frozen=True, slots=True)
class Chunks:
    """The chunks of a checkpoint, counted over all its partitions."""

    fd: int
    """The pool's memfd."""
    size_bytes: int
    """Of each."""
    places: tuple[int, ...]
    """For each, its chunk of the pool."""


class Mapping:
    """Partitions of a checkpoint, each in one piece, over one range of addresses.

    Writes stay private to the process: the first one copies its page. The memory is unmapped
    once the mapping is closed and nothing refers to its buffers any more, be it a tensor.
    """

    def __init__(
        self, chunks: Chunks, starts: Sequence[int], memory: "ctypes.Array[ctypes.c_char]"
    ) -> None:
        self.address = ctypes.addressof(memory)
        self.size_bytes = starts[-1]
        self.chunk_bytes = chunks.size_bytes
        self.starts = starts
        """Of each partition, in bytes from the first; and where the last one ends."""
        self._chunks = chunks
        self._memory: ctypes.Array[ctypes.c_char] | None = memory

    def buffer(self, partition: int) -> memoryview:
        """The bytes of a partition's chunks; those after its end have no meaning.

        Raises:
            ValueError: the mapping is closed.
        """
        if self._memory is None:
            raise ValueError("the mapping is closed")
        start, end = self.starts[partition], self.starts[partition + 1]
        return memoryview(self._memory).cast("B")[start:end]

    def bring(self, indices: Iterable[int]) -> None:
        """Maps chunks that were left out; nothing if the mapping is closed.

        Args:
            indices: in ascending order, counted over all partitions.

        Raises:
            OSError: the kernel refused a mapping.
        """
        if self._memory is None:
            return
        protection = libc.PROT_READ | libc.PROT_WRITE
        flags = libc.MAP_PRIVATE | libc.MAP_FIXED | libc.MAP_NORESERVE
        fd, size, places = self._chunks.fd, self._chunks.size_bytes, self._chunks.places
        for first, count in _runs(indices, places):
            address, offset = self.address + first * size, places[first] * size
            libc.mmap(address, count * size, protection, flags, fd, offset)

    def close(self) -> None:
        """Lets go of the memory; it is unmapped when the last buffer over it is gone."""
        self._memory = None


def map_chunks(
    fd: int,
    chunk_bytes: int,
    partitions: Sequence[Sequence[int]],
    absent: Collection[int] = frozenset(),
) -> Mapping:
    """Maps the chunks of partitions side by side, in their order.

    Args:
        fd: the pool's memfd; it may be closed once all chunks are mapped.
        chunk_bytes: the pool's.
        partitions: for each, its chunks in the pool.
        absent: chunks that are left out until `Mapping.bring` has them, counted over all
            partitions. Whoever touches one before is ended by the kernel: what is in it may be
            anything.

    Raises:
        OSError: the kernel refused a mapping.
    """
    starts = [0, *accumulate(len(chunks) * chunk_bytes for chunks in partitions)]
    places = tuple(chunk for chunks in partitions for chunk in chunks)
    memory = reserve(starts[-1], libc.PROT_NONE)
    mapping = Mapping(Chunks(fd, chunk_bytes, places), starts, memory)
    mapping.bring(index for index in range(len(places)) if index not in absent)
    return mapping


def _runs(indices: Iterable[int], places: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Neighbours, in the checkpoint and in the pool, as (first, count): one call maps them all."""
    first, count = 0, 0
    for index in indices:
        if count and index == first + count and places[index] == places[first] + count:
            count += 1
            continue
        if count:
            yield first, count
        first, count = index, 1
    if count:
        yield first, count
