"""Reads a checkpoint's partitions into memory, a few chunks at a time.

A partition without digests, such as a plain safetensors file, is read unchecked; its last chunk
need not be whole blocks.
"""

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Executor, Future, as_completed, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import xxhash

from sllm.checkpoint.files.direct_io import DirectFile
from sllm.checkpoint.files.memory import ChunkMemory
from sllm.checkpoint.format.file_errors import cannot_open
from sllm.checkpoint.format.manifest import BLOCK_BYTES, Manifest, PartitionEntry, corrupt
from sllm.checkpoint.format.room import Room
from sllm.clock import Clock
from sllm.errors import Cancelled


@dataclass(frozen=True, slots=True)
class ChunkRead:
    """One chunk's way."""

    file: DirectFile
    offset: int
    size: int
    digest: str
    """What it must have; empty: it is not checked."""
    memory: Callable[[], memoryview]
    """Where it goes."""

    @contextmanager
    def blocks(self) -> Iterator[memoryview]:
        """The memory for it, in whole blocks."""
        whole = -(-self.size // BLOCK_BYTES) * BLOCK_BYTES
        with self.memory() as chunk, chunk[:whole] as memory:
            yield memory

    def bring(self, memory: memoryview) -> None:
        """Reads the chunk into `memory`, which is whole blocks.

        Raises:
            CheckpointCorrupt: it cannot be read; names file and offset.
        """
        self.file.read_into(memory, self.offset, self.size)

    def check(self, memory: memoryview) -> str:
        """The digest of what was read.

        Raises:
            CheckpointCorrupt: it is not what it must be; names file and offset.
        """
        with memory[: self.size] as content:
            found = xxhash.xxh3_128_hexdigest(content)
        if found != (self.digest or found):
            problem = f"the chunk of {self.size} bytes has the digest {found} instead of "
            raise corrupt(self.file.path, problem + self.digest, self.offset)
        return found


def read_checkpoint(
    directory: Path,
    manifest: Manifest,
    memory: ChunkMemory,
    *,
    threads: Executor,
    clock: Clock,
    progress: Callable[[int, int], object],
    cancelled: Callable[[], bool],
    verify: bool = True,
) -> float:
    """Reads and verifies all chunks. When it returns or raises, none is being written any more.

    Args:
        directory: where the partitions are.
        manifest: what they hold.
        memory: where the chunks go; asked by the thread that reads, just before it does.
        threads: read one chunk each; several checkpoints may share them, first come first served.
        clock: measures.
        progress: told the bytes read so far and those to read.
        cancelled: asked between chunks whether to stop.
        verify: whether digests are checked.

    Returns:
        When the first chunk's turn came, by `clock`.

    Raises:
        Cancelled: `cancelled` said so.
        CheckpointCorrupt: a chunk cannot be read, or is not what was written; names file, offset.
        CheckpointUnreadable: a file cannot be opened or read now.
    """
    with ExitStack() as files:
        reads = open_reads(directory, manifest, memory, files, verify=verify)
        return read_chunks(
            reads, threads=threads, clock=clock, progress=progress, cancelled=cancelled
        )


def read_chunks(
    reads: Sequence[ChunkRead],
    *,
    threads: Executor,
    clock: Clock,
    progress: Callable[[int, int], object],
    cancelled: Callable[[], bool],
) -> float:
    """As `read_checkpoint`, of chunks of files that the caller keeps open."""
    futures = {threads.submit(read_chunk, read, clock, cancelled): read.size for read in reads}
    done, total = 0, sum(futures.values())
    try:
        for future in as_completed(futures):
            future.result()
            done += futures[future]
            progress(done, total)
    finally:
        _settle(futures)
    return min((future.result() for future in futures), default=clock.now())


def open_reads(
    directory: Path,
    manifest: Manifest,
    memory: ChunkMemory,
    files: ExitStack,
    *,
    verify: bool = True,
    room: Room | None = None,
) -> list[ChunkRead]:
    """The chunks of a checkpoint, of files that stay open until `files` is closed.

    Args:
        directory: where the partitions are.
        manifest: what they hold.
        memory: where the chunks go.
        files: takes the open files.
        verify: whether digests are checked, where they are known.
        room: where the files may lie, if others can write there.

    Raises:
        CheckpointCorrupt: a partition is not there; names it.
        CheckpointUnreadable: one cannot be opened now.
    """
    return [
        read if verify else replace(read, digest="")
        for index, entry in enumerate(manifest.partitions)
        for file in [files.enter_context(open_file(directory / entry.file, room))]
        for read in reads_of(entry, partial(memory, index), file)
    ]


def reads_of(
    entry: PartitionEntry, memory: Callable[[int], memoryview], file: DirectFile
) -> list[ChunkRead]:
    """The chunks of a partition.

    Args:
        entry: the partition.
        memory: gives the memory for a chunk, by its index.
        file: the partition's, open.
    """
    offsets = range(0, entry.size, entry.chunk_size)
    sizes = [min(entry.chunk_size, entry.size - offset) for offset in offsets]
    digests = entry.digests or ("",) * len(offsets)
    return [
        ChunkRead(file, offset, size, digest, partial(memory, index))
        for index, (offset, size, digest) in enumerate(zip(offsets, sizes, digests, strict=True))
    ]


def open_file(path: Path, room: Room | None = None) -> DirectFile:
    """A partition, to be read.

    Raises:
        CheckpointCorrupt: it is not there; names it.
        CheckpointUnreadable: it cannot be opened now.
        InvalidSource: it does not lie in its room.
    """
    try:
        # O_NONBLOCK: a FIFO may have taken the file's place.
        file = DirectFile(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        raise cannot_open(path, error) from error
    with ExitStack() as stack:
        stack.enter_context(file)
        if room:
            file.check(room)
        stack.pop_all()
    return file


def read_chunk(read: ChunkRead, clock: Clock, cancelled: Callable[[], bool]) -> float:
    """One chunk; says when its turn came. Errors are those of `read_checkpoint`."""
    if cancelled():
        raise Cancelled("the load was cancelled")
    began = clock.now()
    with read.blocks() as memory:
        read.bring(memory)
        if read.digest:
            read.check(memory)
    return began


def _settle(futures: Collection[Future[float]]) -> None:
    for future in futures:
        future.cancel()
    wait(futures)
