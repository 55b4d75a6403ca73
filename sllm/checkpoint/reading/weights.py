"""Weights as they lie on disk, packed or as plain safetensors: what is where, for one reader."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sllm.checkpoint.format.manifest import (
    CHUNK_BYTES,
    VERSION,
    Manifest,
    PartitionEntry,
    TensorEntry,
)
from sllm.checkpoint.format.manifest_file import MANIFEST_FILE, read_manifest
from sllm.checkpoint.format.safetensors_header import TensorHeader, read_header
from sllm.checkpoint.sources.sources import read_tensors
from sllm.errors import InvalidSource, SourceNotFound


@dataclass(frozen=True, slots=True)
class Weights:
    """Files of tensors, described as a checkpoint's partitions whatever their format is."""

    directory: Path
    manifest: Manifest
    """Of safetensors: each file is a partition without digests, its tensors lie where the file
    has them, aligned or not; the whole has no digest."""
    packed: bool
    """Whether it is a checkpoint with a manifest of its own."""


def find_weights(path: str | os.PathLike[str]) -> Weights:
    """Reads the manifest, or the headers, of what lies at `path`, and checks the files' sizes.

    Args:
        path: a packed checkpoint, a directory of safetensors files, or one such file.

    Raises:
        SourceNotFound: nothing is there.
        InvalidSource: it is none of these, or cannot be read.
        CheckpointCorrupt: a file is missing, cut short or contradicts itself; names the file.
    """
    place = Path(path)
    if place.is_file():
        tensors = read_header(place)
        if not tensors:
            raise InvalidSource(f"{place} holds no tensors: there is nothing to load")
        return Weights(place.parent, in_place(tensors, CHUNK_BYTES), packed=False)
    if (place / MANIFEST_FILE).is_file():
        return Weights(place, read_manifest(place), packed=True)
    if not place.is_dir():
        raise SourceNotFound(f"there is neither a file nor a directory {place}")
    return Weights(place, in_place(read_tensors(place), CHUNK_BYTES), packed=False)


def in_place(tensors: Iterable[TensorHeader], chunk_size: int) -> Manifest:
    """Safetensors files as partitions, to be read as they are.

    Args:
        tensors: those of files that lie in one directory.
        chunk_size: bytes.
    """
    ordered = tuple(tensors)
    files = tuple(dict.fromkeys(tensor.file for tensor in ordered))
    index = {file: number for number, file in enumerate(files)}
    return Manifest(
        version=VERSION,
        tensors=tuple(_entry(tensor, index[tensor.file]) for tensor in ordered),
        partitions=tuple(_partition(file, chunk_size) for file in files),
        files=(),
        digest="",
    )


def _entry(tensor: TensorHeader, partition: int) -> TensorEntry:
    return TensorEntry(
        tensor.name, tensor.dtype, tensor.shape, partition, tensor.offset, tensor.size
    )


def _partition(file: Path, chunk_size: int) -> PartitionEntry:
    return PartitionEntry(file.name, file.stat().st_size, chunk_size, digests=())
