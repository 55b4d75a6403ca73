"""Reads a checkpoint's partitions into chunks of the pool, a few chunks at a time."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, as_completed, wait
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import xxhash

from sllm.checkpoint.direct_io import DirectFile
from sllm.checkpoint.manifest import Manifest, PartitionEntry, corrupt
from sllm.clock import Clock
from sllm.errors import Cancelled
from sllm.node.pool import Pool


@dataclass(frozen=True, slots=True)
class ChunkRead:
    """One chunk's way."""

    file: DirectFile
    offset: int
    size: int
    digest: str
    chunk: int
    """Where it goes in the pool."""


def read_checkpoint(
    directory: Path,
    manifest: Manifest,
    pool: Pool,
    chunks: Sequence[Sequence[int]],
    *,
    threads: Executor,
    clock: Clock,
    progress: Callable[[int, int], object],
    cancelled: Callable[[], bool],
) -> float:
    """Reads and verifies all chunks. When it returns or raises, none is being written any more.

    Args:
        directory: where the partitions are.
        manifest: what they hold.
        pool: where the chunks go.
        chunks: for each partition, its chunks in the pool.
        threads: read one chunk each; several checkpoints may share them, first come first served.
        clock: measures.
        progress: told the bytes read so far and those to read.
        cancelled: asked between chunks whether to stop.

    Returns:
        When the first chunk's turn came, by `clock`.

    Raises:
        Cancelled: `cancelled` said so.
        CheckpointCorrupt: a chunk cannot be read, or is not what was written; names file, offset.
    """
    with ExitStack() as files:
        reads = _reads(directory, manifest, chunks, files)
        futures = [threads.submit(_read, read, pool, clock, cancelled) for read in reads]
        files.callback(_settle, futures)
        done = 0
        sizes = dict(zip(futures, (read.size for read in reads), strict=True))
        for future in as_completed(futures):
            future.result()
            done += sizes[future]
            progress(done, manifest.size_bytes)
    return min(future.result() for future in futures)


def _reads(
    directory: Path, manifest: Manifest, chunks: Sequence[Sequence[int]], files: ExitStack
) -> list[ChunkRead]:
    return [
        read
        for entry, places in zip(manifest.partitions, chunks, strict=True)
        for read in _reads_of(entry, places, files.enter_context(_open(directory / entry.file)))
    ]


def _reads_of(entry: PartitionEntry, places: Sequence[int], file: DirectFile) -> list[ChunkRead]:
    offsets = range(0, entry.size, entry.chunk_size)
    return [
        ChunkRead(file, offset, min(entry.chunk_size, entry.size - offset), digest, chunk)
        for offset, digest, chunk in zip(offsets, entry.digests, places, strict=True)
    ]


def _open(path: Path) -> DirectFile:
    try:
        return DirectFile(path, os.O_RDONLY)
    except OSError as error:
        raise corrupt(path, f"cannot be opened: {error.strerror}") from error


def _read(read: ChunkRead, pool: Pool, clock: Clock, cancelled: Callable[[], bool]) -> float:
    if cancelled():
        raise Cancelled("the load was cancelled")
    began = clock.now()
    pool.touch(read.chunk)
    with pool.view(read.chunk) as chunk, chunk[: read.size] as memory:
        read.file.read_into(memory, read.offset)
        found = xxhash.xxh3_128_hexdigest(memory)
    if found != read.digest:
        problem = f"the chunk of {read.size} bytes has the digest {found} instead of {read.digest}"
        raise corrupt(read.file.path, problem, read.offset)
    return began


def _settle(futures: Sequence[Future[float]]) -> None:
    for future in futures:
        future.cancel()
    wait(futures)
