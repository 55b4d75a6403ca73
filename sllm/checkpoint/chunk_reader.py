"""Reads a checkpoint's partitions into memory, a few chunks at a time.

A partition without digests, such as a plain safetensors file, is read unchecked; its last chunk
need not be whole blocks.
"""

import os
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Executor, Future, as_completed, wait
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import xxhash

from sllm.checkpoint.direct_io import DirectFile
from sllm.checkpoint.manifest import BLOCK_BYTES, Manifest, PartitionEntry, corrupt
from sllm.checkpoint.memory import ChunkMemory
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
) -> list[ChunkRead]:
    """The chunks of a checkpoint, of files that stay open until `files` is closed.

    Args:
        directory: where the partitions are.
        manifest: what they hold.
        memory: where the chunks go.
        files: takes the open files.
        verify: whether digests are checked, where they are known.

    Raises:
        CheckpointCorrupt: a partition cannot be opened; names it.
    """
    return [
        read if verify else replace(read, digest="")
        for index, entry in enumerate(manifest.partitions)
        for read in reads_of(
            entry, partial(memory, index), files.enter_context(open_file(directory / entry.file))
        )
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


def open_file(path: Path) -> DirectFile:
    """A partition, to be read.

    Raises:
        CheckpointCorrupt: it cannot be opened; names it.
    """
    try:
        return DirectFile(path, os.O_RDONLY)
    except OSError as error:
        raise corrupt(path, f"cannot be opened: {error.strerror}") from error


def read_chunk(read: ChunkRead, clock: Clock, cancelled: Callable[[], bool]) -> float:
    """One chunk; says when its turn came. Errors are those of `read_checkpoint`."""
    if cancelled():
        raise Cancelled("the load was cancelled")
    began = clock.now()
    blocks = -(-read.size // BLOCK_BYTES) * BLOCK_BYTES
    with read.memory() as chunk, chunk[:blocks] as memory:
        read.file.read_into(memory, read.offset, read.size)
        if read.digest:
            _check(read, xxhash.xxh3_128_hexdigest(memory[: read.size]))
    return began


def _check(read: ChunkRead, found: str) -> None:
    if found != read.digest:
        problem = f"the chunk of {read.size} bytes has the digest {found} instead of {read.digest}"
        raise corrupt(read.file.path, problem, read.offset)


def _settle(futures: Collection[Future[float]]) -> None:
    for future in futures:
        future.cancel()
    wait(futures)
