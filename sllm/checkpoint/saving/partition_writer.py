"""Writes a partition chunk by chunk: one is filled while those before go to the disk."""

import mmap
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future, wait
from pathlib import Path
from types import TracebackType
from typing import Self

import xxhash

from sllm.checkpoint.files.direct_io import DirectFile
from sllm.checkpoint.format.manifest import PartitionEntry

CHUNKS_IN_FLIGHT = 2
"""Chunks that wait for the disk at most, beside the one that is being filled."""

MemoryOf = Callable[[int], memoryview]
"""Gives the memory for the chunk of an index. It may be given out again `CHUNKS_IN_FLIGHT` + 1
chunks later."""


def ring(chunk_bytes: int) -> MemoryOf:
    """Memory for as many chunks as are in use at once, handed out in turn."""
    chunks = [memoryview(mmap.mmap(-1, chunk_bytes)) for _ in range(CHUNKS_IN_FLIGHT + 1)]
    return lambda index: chunks[index % len(chunks)]


class PartitionWriter:
    """Takes a partition's bytes in order.

    Not for several threads at once. An error of a write in the background comes out of the next
    call that would have to wait for it.
    """

    def __init__(
        self, path: Path, size: int, chunk_bytes: int, memory: MemoryOf, background: Executor
    ) -> None:
        """Creates the file.

        Args:
            path: where; nothing may be there.
            size: bytes that will come, padding included.
            chunk_bytes: those of every chunk but the last.
            memory: where chunks are filled; block-aligned.
            background: has one thread, so that chunks are written in order.
        """
        self._file = DirectFile(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        self._size = size
        self._chunk_bytes = chunk_bytes
        self._memory = memory
        self._background = background
        self._digests: list[str] = []
        self._writes: deque[Future[str]] = deque()
        self._chunk_start = 0
        self._chunk = self._next_chunk()
        self._filled = 0

    @property
    def position(self) -> int:
        """Bytes taken so far."""
        return self._chunk_start + self._filled

    def room(self) -> memoryview:
        """What is left of the current chunk: fill its front, then call `advance`."""
        return self._chunk[self._filled :]

    def advance(self, count: int) -> None:
        """Says that the first `count` bytes of `room()` are filled."""
        self._filled += count
        if self._filled < len(self._chunk):
            return
        offset, chunk = self._chunk_start, self._chunk
        self._writes.append(self._background.submit(self._write, chunk, offset))
        self._wait(CHUNKS_IN_FLIGHT)
        self._chunk_start, self._filled = self.position, 0
        self._chunk = self._next_chunk()

    def fill_to(self, offset: int) -> None:
        """Fills with zeros up to `offset` of the partition."""
        while self.position < offset:
            room = self.room()
            count = min(len(room), offset - self.position)
            room[:count] = bytes(count)
            self.advance(count)

    def finish(self) -> PartitionEntry:
        """Pads the partition and returns when the disk has all of it."""
        self.fill_to(self._size)
        self._wait(0)
        self._file.flush()
        return PartitionEntry(
            self._file.path.name, self._size, self._chunk_bytes, tuple(self._digests)
        )

    def _next_chunk(self) -> memoryview:
        left = min(self._chunk_bytes, self._size - self._chunk_start)
        return (
            self._memory(self._chunk_start // self._chunk_bytes)[:left] if left else memoryview(b"")
        )

    def _write(self, chunk: memoryview, offset: int) -> str:
        self._file.write_from(chunk, offset)
        return xxhash.xxh3_128_hexdigest(chunk)

    def _wait(self, most: int) -> None:
        """Waits until at most that many writes are under way."""
        while len(self._writes) > most:
            self._digests.append(self._writes.popleft().result())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Returns when no write is under way: chunks' memory may be taken for something else."""
        for write in self._writes:
            write.cancel()
        wait(self._writes)
        self._file.close()
