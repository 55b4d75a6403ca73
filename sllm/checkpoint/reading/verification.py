"""Reads all of a checkpoint and checks it: `sllm.checkpoint.verify`."""

import mmap
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from pathlib import Path

import xxhash

from sllm import machine
from sllm.checkpoint.format.manifest import FileEntry, Manifest, PartitionEntry, corrupt
from sllm.checkpoint.format.manifest_file import MANIFEST_FILE, parse_manifest, wrong_sizes
from sllm.checkpoint.format.plain_files import read_plain
from sllm.checkpoint.format.safetensors_header import read_header
from sllm.checkpoint.reading.chunk_reader import ChunkRead, open_file, read_chunk, reads_of
from sllm.checkpoint.reading.weights import find_weights
from sllm.clock import MonotonicClock
from sllm.errors import CheckpointCorrupt

READ_THREADS = 4
"""Each reads one chunk at a time: as many chunks are in memory at most."""

Progress = Callable[[int, int], object]
"""Told the bytes read so far and those to read."""


def verify(path: str | os.PathLike[str], progress: Progress | None = None) -> None:
    """Reads every byte of a checkpoint, in bounded memory, and checks all that can be checked.

    Of a packed checkpoint: the manifest, the sizes and digests of all files and chunks. Of
    safetensors, which have no digests: headers, sizes, shapes, and that all can be read.

    Args:
        path: a packed checkpoint, a directory of safetensors files, or one such file.
        progress: told the bytes read so far and those to read.

    Raises:
        SourceNotFound: nothing is there.
        InvalidSource: it is not a checkpoint, or cannot be read.
        CheckpointCorrupt: names every wrong place by file and offset; `metadata` has the first.
    """
    damage = find_damage(path, progress)
    if damage:
        everything = "; ".join(error.message for error in damage)
        raise CheckpointCorrupt(everything, metadata=damage[0].metadata)


def find_damage(
    path: str | os.PathLike[str], progress: Progress | None = None
) -> tuple[CheckpointCorrupt, ...]:
    """As `verify`, but returns an error for each wrong place, in the order of file and offset."""
    place = Path(path)
    progress = progress or (lambda done, total: None)
    if (place / MANIFEST_FILE).is_file():
        found = list(_packed_damage(place, progress))
    else:
        found = list(_plain_damage(place, progress))
    return tuple({_place(error): error for error in sorted(found, key=_place)}.values())


def _place(error: CheckpointCorrupt) -> tuple[str, int]:
    return error.metadata["file"], int(error.metadata.get("offset", -1))


def _packed_damage(directory: Path, progress: Progress) -> Iterator[CheckpointCorrupt]:
    try:
        manifest = parse_manifest(directory)
    except CheckpointCorrupt as error:
        yield error
        return
    yield from wrong_sizes(directory, manifest)
    yield from _unreadable(directory, manifest, progress)
    for file in manifest.files:
        yield from _wrong_content(directory / file.name, file)


def _plain_damage(place: Path, progress: Progress) -> Iterator[CheckpointCorrupt]:
    try:
        weights = find_weights(place)
    except CheckpointCorrupt as error:
        yield error
        yield from _broken_headers(place)
        return
    yield from _unreadable(weights.directory, weights.manifest, progress)


def _broken_headers(place: Path) -> Iterator[CheckpointCorrupt]:
    """File by file, so that one that is broken does not hide another."""
    for path in place.glob("*.safetensors"):
        try:
            read_header(path)
        except CheckpointCorrupt as error:
            yield error


def _unreadable(
    directory: Path, manifest: Manifest, progress: Progress
) -> Iterator[CheckpointCorrupt]:
    """Errors of chunks that cannot be read, or are not what was written."""
    buffers = _Buffers(max(min(entry.chunk_size, entry.size) for entry in manifest.partitions))
    done = 0
    with ExitStack() as stack:
        readers = ThreadPoolExecutor(machine.threads(READ_THREADS), "chunk-read")
        threads = stack.enter_context(readers)
        reads, errors = _reads(directory, manifest.partitions, buffers, stack)
        yield from errors
        clock = MonotonicClock()
        futures = {threads.submit(read_chunk, read, clock, _never): read.size for read in reads}
        for future in as_completed(futures):
            done += futures[future]
            progress(done, manifest.size_bytes)
            try:
                future.result()
            except CheckpointCorrupt as error:
                yield error


def _reads(
    directory: Path, partitions: Sequence[PartitionEntry], buffers: "_Buffers", files: ExitStack
) -> tuple[list[ChunkRead], list[CheckpointCorrupt]]:
    """The chunks that are there to be read, and errors for files that cannot be."""
    reads: list[ChunkRead] = []
    errors: list[CheckpointCorrupt] = []
    for entry in partitions:
        path = directory / entry.file
        if not path.is_file():
            continue  # its absence has been told
        try:
            file = files.enter_context(open_file(path))
        except CheckpointCorrupt as error:
            errors.append(error)
            continue
        # What lies behind the end of a file that was cut short has been told as one error.
        there = path.stat().st_size
        reads += [read for read in reads_of(entry, buffers.chunk, file) if read.offset < there]
    return reads, errors


class _Buffers:
    """A chunk's memory for every thread, overwritten by its next chunk."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._local = threading.local()

    def chunk(self, index: int) -> memoryview:
        if not hasattr(self._local, "memory"):
            self._local.memory = mmap.mmap(-1, self._size)
        return memoryview(self._local.memory)


def _never() -> bool:
    return False


def _wrong_content(path: Path, file: FileEntry) -> Iterator[CheckpointCorrupt]:
    """An error if a small file of the right size is not what was written."""
    try:
        content = read_plain(path)
    except FileNotFoundError:
        return  # its absence has been told
    except OSError as error:
        yield corrupt(path, f"cannot be read: {error.strerror}")
        return
    found = xxhash.xxh3_128_hexdigest(content)
    if len(content) == file.size and found != file.digest:
        yield corrupt(path, f"has the digest {found} instead of {file.digest}")
