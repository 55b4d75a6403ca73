"""What a loading-optimised checkpoint consists of.

A directory of `manifest.json`, `partition-NNNNN.bin` and the model's own small files. Tensor
bytes lie contiguously in partitions, aligned so that vectorised kernels may read them in place;
partitions are padded to the block of direct I/O and move in chunks, each with its digest.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import xxhash

from sllm.errors import CheckpointCorrupt

VERSION = 1
"""The major version of the format. Within one, keys are only ever added, outside of what the digest
covers: a reader ignores those that it does not know, and refuses a newer version."""

TENSOR_ALIGNMENT = 64
"""Bytes; a cache line, and the widest vector register."""
BLOCK_BYTES = 4096
"""Direct I/O moves multiples of this, from and to multiples of this."""
CHUNK_BYTES = 16 << 20
"""The default size of a chunk."""

_MAX_PROBLEM = 1000
"""Letters."""
_DIGEST = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where one tensor lies. Tied tensors are entries of the same partition and offset."""

    name: str
    """As in the repository that the model came from."""
    dtype: str
    """A safetensors name: F32, BF16, I64 ..."""
    shape: tuple[int, ...]
    partition: int
    """Index into `Manifest.partitions`."""
    offset: int
    """Bytes from the start of the partition; a multiple of `TENSOR_ALIGNMENT`."""
    size: int
    """Bytes; 0 for a tensor without elements."""


@dataclass(frozen=True, slots=True)
class PartitionEntry:
    """A file of tensor bytes."""

    file: str
    size: int
    """Bytes of the file, padding included; a multiple of `BLOCK_BYTES`."""
    chunk_size: int
    """Bytes of every chunk but the last, which holds what is left."""
    digests: tuple[str, ...]
    """xxh3_128 of every chunk, in hexadecimal; none at all if nobody has computed them."""

    @property
    def chunk_count(self) -> int:
        """How many chunks there are."""
        return -(-self.size // self.chunk_size)


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A small file of the model: its configuration, tokenizer, chat template ..."""

    name: str
    size: int
    """Bytes."""
    digest: str
    """xxh3_128 of its content, in hexadecimal."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a checkpoint consists of."""

    version: int
    tensors: tuple[TensorEntry, ...]
    """In order of first use, as far as their names tell it."""
    partitions: tuple[PartitionEntry, ...]
    files: tuple[FileEntry, ...]
    digest: str
    """Names the content: xxh3_128 over the tensors and the digests of chunks and files."""

    @property
    def size_bytes(self) -> int:
        """Bytes of all partitions: what moves between tiers."""
        return sum(partition.size for partition in self.partitions)

    @property
    def disk_bytes(self) -> int:
        """Bytes of all partitions and small files: what a copy takes on SSD."""
        return self.size_bytes + sum(file.size for file in self.files)


def content_digest(
    tensors: Sequence[TensorEntry],
    partitions: Sequence[PartitionEntry],
    files: Sequence[FileEntry],
) -> str:
    """The digest that names a checkpoint of this content."""
    described = {
        "tensors": [asdict(tensor) for tensor in tensors],
        "partitions": [asdict(partition) for partition in partitions],
        "files": [asdict(file) for file in sorted(files, key=lambda file: file.name)],
    }
    canonical = json.dumps(described, sort_keys=True, separators=(",", ":"))
    return xxhash.xxh3_128_hexdigest(canonical.encode())


def make_manifest(
    tensors: Sequence[TensorEntry],
    partitions: Sequence[PartitionEntry],
    files: Sequence[FileEntry],
) -> Manifest:
    """The manifest of this content, digest included."""
    digest = content_digest(tensors, partitions, files)
    return Manifest(VERSION, tuple(tensors), tuple(partitions), tuple(files), digest)


def is_digest(text: str) -> bool:
    """Whether a text has the form of a digest."""
    return _DIGEST.fullmatch(text) is not None


def corrupt(path: Path | str, problem: str, offset: int | None = None) -> CheckpointCorrupt:
    """The error that names a file by its path or URL, and the offset in it where one is known."""
    metadata = {"file": str(path)}
    place = str(path)
    if offset is not None:
        metadata["offset"] = str(offset)
        place += f" at offset {offset}"
    # What is quoted of the file is cut: it may be most of the file.
    return CheckpointCorrupt(f"{place}: {problem[:_MAX_PROBLEM]}", metadata=metadata)
