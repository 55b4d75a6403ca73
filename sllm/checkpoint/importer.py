"""Turns a safetensors directory into a checkpoint, streaming: the model is never held in memory."""

import json
import mmap
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from sllm.checkpoint.conversion import convert
from sllm.checkpoint.dtypes import BY_TORCH_NAME, tensor_bytes
from sllm.checkpoint.layout import Layout, plan_layout
from sllm.checkpoint.manifest import FileEntry, Manifest, PartitionEntry, corrupt, make_manifest
from sllm.checkpoint.manifest_file import write_manifest
from sllm.checkpoint.memory import ChunkMemory
from sllm.checkpoint.partition_writer import CHUNKS_IN_FLIGHT, PartitionWriter
from sllm.checkpoint.safetensors_header import TensorHeader
from sllm.checkpoint.sources import LocalSource, SourceFiles, fingerprint
from sllm.errors import Cancelled, InvalidArgument

PIECE_BYTES = 4 << 20
"""Read at once: a cancelled import ends after as much, and progress is told as often."""

_CONFIG = "config.json"
_DTYPE_KEYS = ("dtype", "torch_dtype")


@dataclass(frozen=True, slots=True)
class ImportPlan:
    """What an import will do, known from the source's headers alone."""

    files: SourceFiles
    dtype: str | None
    """Torch's name for what plain floating tensors become; None: they stay as they are."""
    layout: Layout

    @property
    def disk_bytes(self) -> int:
        """Bytes that the checkpoint will take, but for its manifest."""
        return self.layout.size_bytes + sum(path.stat().st_size for path in self.files.files)


def plan_import(files: SourceFiles, dtype: str | None) -> ImportPlan:
    """Decides where every tensor goes.

    Args:
        files: the source's.
        dtype: torch's name of what plain floating tensors are converted to; None: nothing is.

    Raises:
        InvalidArgument: the dtype is not one that weights can be converted to.
    """
    if dtype is not None and dtype not in BY_TORCH_NAME:
        known = ", ".join(BY_TORCH_NAME)
        raise InvalidArgument(f"weights cannot be converted to dtype {dtype!r}; use one of {known}")
    target = BY_TORCH_NAME[dtype] if dtype else None
    return ImportPlan(files, dtype, plan_layout(files.tensors, target))


def import_checkpoint(
    plan: ImportPlan,
    destination: Path,
    *,
    chunk_bytes: int,
    progress: Callable[[int, int], object],
    cancelled: Callable[[], bool],
    memory: ChunkMemory | None = None,
) -> Manifest:
    """Writes a checkpoint, whole and flushed to the disk, or leaves nothing behind.

    Memory is bounded by a few chunks whatever the checkpoint's size. A process that is killed
    leaves an incomplete directory: give `destination` a temporary name, and rename it afterwards.

    Args:
        plan: what to import.
        destination: a directory that does not exist yet.
        chunk_bytes: size of the checkpoint's chunks.
        progress: told the bytes read so far and those to read.
        cancelled: asked between pieces whether to stop.
        memory: where chunks are filled, and left; None: in memory of the import's own.

    Raises:
        Cancelled: `cancelled` said so.
        CheckpointCorrupt: the source cannot be read, or was changed meanwhile.
        OSError: the disk is full, or fails.
    """
    destination.mkdir()
    try:
        return _Import(plan, destination, chunk_bytes, progress, cancelled).run(memory)
    except BaseException:
        shutil.rmtree(destination)
        raise


class _Import:
    def __init__(
        self,
        plan: ImportPlan,
        destination: Path,
        chunk_bytes: int,
        progress: Callable[[int, int], object],
        cancelled: Callable[[], bool],
    ) -> None:
        self._plan = plan
        self._destination = destination
        self._chunk_bytes = chunk_bytes
        self._progress = progress
        self._cancelled = cancelled
        self._read_bytes = 0

    def run(self, memory: ChunkMemory | None) -> Manifest:
        with ExitStack() as stack:
            background = stack.enter_context(ThreadPoolExecutor(1, "chunk-write"))
            reader = stack.enter_context(_Reader(self._plan.files.weights))
            memory = memory or _ring(self._chunk_bytes)
            partitions = [
                self._write_partition(index, reader, memory, background)
                for index in range(len(self._plan.layout.partition_sizes))
            ]
        files = [self._copy(path) for path in self._plan.files.files]
        manifest = make_manifest(self._plan.layout.tensors, partitions, files)
        write_manifest(self._destination, manifest)
        flush_directory(self._destination)
        self._check_unchanged()
        return manifest

    def _write_partition(
        self, index: int, reader: "_Reader", memory: ChunkMemory, background: Executor
    ) -> PartitionEntry:
        layout = self._plan.layout
        path = self._destination / f"partition-{index:05}.bin"
        size = layout.partition_sizes[index]
        with PartitionWriter(
            path, size, self._chunk_bytes, lambda chunk: memory(index, chunk), background
        ) as writer:
            for source, entry in zip(layout.sources, layout.tensors, strict=True):
                if entry.partition == index:
                    writer.fill_to(entry.offset)
                    self._write_tensor(source, entry.dtype, reader, writer)
            return writer.finish()

    def _write_tensor(
        self, source: TensorHeader, dtype: str, reader: "_Reader", writer: PartitionWriter
    ) -> None:
        write = _write_as_it_is if dtype == source.dtype else _write_converted
        done = 0
        while done < source.size:
            if self._cancelled():
                raise Cancelled(f"the import of {self._plan.files.directory} was cancelled")
            count = write(source, dtype, done, reader, writer)
            done += count
            self._read_bytes += count
            self._progress(self._read_bytes, self._plan.files.size_bytes)

    def _copy(self, path: Path) -> FileEntry:
        content = path.read_bytes()
        if path.name == _CONFIG and self._plan.dtype:
            content = with_dtype(content, self._plan.dtype, path)
        with (self._destination / path.name).open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        return FileEntry(path.name, len(content), xxhash.xxh3_128_hexdigest(content))

    def _check_unchanged(self) -> None:
        files = self._plan.files
        if fingerprint(LocalSource(files.directory)) != files.fingerprint:
            raise corrupt(files.directory, "was changed while it was being imported; try again")


def _write_as_it_is(
    source: TensorHeader, dtype: str, done: int, reader: "_Reader", writer: PartitionWriter
) -> int:
    """Moves the next piece of a tensor; returns the bytes of the source that it took."""
    room = writer.room()[: min(PIECE_BYTES, source.size - done)]
    reader.read_into(room, source, done)
    writer.advance(len(room))
    return len(room)


def _write_converted(
    source: TensorHeader, dtype: str, done: int, reader: "_Reader", writer: PartitionWriter
) -> int:
    """As above. Elements do not straddle chunks: both alignments are multiples of their size."""
    element, converted_element = tensor_bytes(source.dtype, ()), tensor_bytes(dtype, ())
    room = writer.room()
    count = min(PIECE_BYTES, source.size - done, len(room) // converted_element * element)
    piece = memoryview(bytearray(count))
    reader.read_into(piece, source, done)
    converted = convert(piece, source.dtype, dtype)
    room[: len(converted)] = converted
    writer.advance(len(converted))
    return count


class _Reader:
    """The source's files, open for as long as the import lasts."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self._stack = ExitStack()
        self._fds: dict[Path, int] = {}

    def read_into(self, memory: memoryview, tensor: TensorHeader, start: int) -> None:
        """Fills `memory` with a tensor's bytes from `start` on.

        Raises:
            CheckpointCorrupt: the file ends before, or cannot be read.
        """
        done, begin = 0, tensor.offset + start
        while done < len(memory):
            try:
                count = os.preadv(self._fds[tensor.file], [memory[done:]], begin + done)
            except OSError as error:
                raise corrupt(tensor.file, f"cannot be read: {error}", begin + done) from error
            if not count:
                raise corrupt(tensor.file, "the file ends here", begin + done)
            done += count

    def __enter__(self) -> "_Reader":
        for path in self._paths:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self._stack.callback(os.close, fd)
            # Read once: what was read may leave the page cache again.
            self._stack.callback(os.posix_fadvise, fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
            self._fds[path] = fd
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()


def _ring(chunk_bytes: int) -> ChunkMemory:
    """Memory for as many chunks as are in use at once, handed out in turn."""
    chunks = [memoryview(mmap.mmap(-1, chunk_bytes)) for _ in range(CHUNKS_IN_FLIGHT + 1)]
    return lambda partition, index: chunks[index % len(chunks)]


def with_dtype(config: bytes, dtype: str, path: Path) -> bytes:
    """A model's configuration after its weights were converted to `dtype`.

    Raises:
        CheckpointCorrupt: the configuration is not a JSON object; names `path`.
    """
    try:
        parsed = json.loads(config)
    except ValueError as error:
        raise corrupt(path, f"cannot be parsed: {error}") from error
    if not isinstance(parsed, dict):
        raise corrupt(path, "is not a JSON object")
    if not any(key in parsed for key in _DTYPE_KEYS):
        parsed["dtype"] = dtype
    return json.dumps(_replace_dtypes(parsed, dtype), indent=2, ensure_ascii=False).encode()


def _replace_dtypes(value: Any, dtype: str) -> Any:
    """Parts of a model (`text_config` and the like) have dtypes of their own."""
    if not isinstance(value, dict):
        return value
    return {
        key: dtype if key in _DTYPE_KEYS and inner is not None else _replace_dtypes(inner, dtype)
        for key, inner in value.items()
    }


def flush_directory(directory: Path) -> None:
    """Returns when the disk has the directory's entries."""
    fd = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
