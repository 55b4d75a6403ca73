"""A checkpoint's manifest on disk: how it is written, read and checked."""

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from sllm.checkpoint.format import strict_json
from sllm.checkpoint.format.dtypes import tensor_bytes
from sllm.checkpoint.format.file_errors import cannot_open
from sllm.checkpoint.format.manifest import (
    BLOCK_BYTES,
    TENSOR_ALIGNMENT,
    VERSION,
    FileEntry,
    Manifest,
    PartitionEntry,
    TensorEntry,
    content_digest,
    corrupt,
    is_digest,
)
from sllm.checkpoint.format.plain_files import read_plain
from sllm.checkpoint.format.room import Room
from sllm.errors import CheckpointCorrupt, InvalidSource

FORMAT = "sllm-checkpoint"
MANIFEST_FILE = "manifest.json"

_Item = TypeVar("_Item")
_LARGEST = (1 << 63) - 1
"""What files, tensors and their dimensions can be as large as."""
_FILE = re.compile(r"[^/\0]{1,255}")
_PARTITION_FILE = re.compile(r"partition-\d{5}\.bin")


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Writes `manifest.json` and flushes it to the disk."""
    with (directory / MANIFEST_FILE).open("wb") as file:
        file.write(encode_manifest(manifest))
        file.flush()
        os.fsync(file.fileno())


def encode_manifest(manifest: Manifest) -> bytes:
    """The content of `manifest.json`."""
    return json.dumps({"format": FORMAT, **asdict(manifest)}, indent=1).encode()


def read_manifest(directory: Path, room: Room | None = None) -> Manifest:
    """Reads a checkpoint's manifest, and checks it and the sizes of the files that it names.

    The files' contents are not read; chunk digests are checked as chunks are promoted.

    Raises:
        CheckpointCorrupt: a file is missing, or is not what it should be; names the file.
        CheckpointUnreadable: the manifest cannot be read now.
        InvalidSource: the checkpoint has no tensors, or its format is newer than what is known.
    """
    manifest = parse_manifest(directory, room)
    for error in wrong_sizes(directory, manifest):
        raise error
    return manifest


def parse_manifest(directory: Path, room: Room | None = None) -> Manifest:
    """Reads a checkpoint's manifest, and checks it alone.

    Raises:
        CheckpointCorrupt: it is missing, or contradicts itself; names the file.
        CheckpointUnreadable: it cannot be read now.
        InvalidSource: it has no tensors, or its format's major version is newer than what is known.
    """
    path = directory / MANIFEST_FILE
    try:
        content = read_plain(path, room)
    except FileNotFoundError as error:
        raise corrupt(path, "missing; this is not a complete checkpoint") from error
    except OSError as error:
        raise cannot_open(path, error) from error
    return decode_manifest(content, path)


def decode_manifest(encoded: bytes, path: Path) -> Manifest:
    """What `encode_manifest` has written, checked.

    Args:
        encoded: the content.
        path: where it comes from, for errors.

    Raises:
        CheckpointCorrupt, InvalidSource: as `parse_manifest`.
    """
    try:
        content = strict_json.parse(encoded)
        _check_version(content, path)
        manifest = _parse(content)
        _check(manifest)
        if not manifest.tensors:
            raise InvalidSource(f"{path} names no tensors: there is nothing to serve or to load")
    except KeyError as error:
        raise corrupt(path, f"the key {error} is missing") from error
    except (ValueError, TypeError) as error:
        raise corrupt(path, str(error)) from error
    return manifest


def wrong_sizes(directory: Path, manifest: Manifest) -> Iterator[CheckpointCorrupt]:
    """An error for every file that is missing, or longer or shorter than the manifest says."""
    sizes = [(entry.file, entry.size) for entry in manifest.partitions]
    for name, size in sizes + [(file.name, file.size) for file in manifest.files]:
        path = directory / name
        if not path.is_file():
            yield corrupt(path, "missing")
        elif (found := path.stat().st_size) != size:
            yield corrupt(path, f"has {found} bytes instead of {size}", min(found, size))


def _check_version(content: Any, path: Path) -> None:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"not a manifest: its format is not {FORMAT!r}")
    version = _natural(content["version"])
    if version > VERSION:
        raise InvalidSource(
            f"{path}: format version {version} is newer than {VERSION}, the newest known here; "
            "read it with a newer sllm"
        )


def _parse(content: Any) -> Manifest:
    """Takes the keys that this version knows, and ignores others."""
    return Manifest(
        version=_natural(content["version"]),
        tensors=_each(content["tensors"], _parse_tensor),
        partitions=_each(content["partitions"], _parse_partition),
        files=_each(content["files"], _parse_file),
        digest=_digest(content["digest"]),
    )


def _check(manifest: Manifest) -> None:
    """Checks what entries say of each other.

    Raises:
        ValueError: says what contradicts what.
    """
    for partition in manifest.partitions:
        _check_partition(partition)
    for tensor in manifest.tensors:
        _check_tensor(tensor, manifest.partitions)
    _check_overlaps(manifest.tensors)
    names = [entry.name for entry in manifest.tensors]
    files = [entry.file for entry in manifest.partitions] + [file.name for file in manifest.files]
    for repeated in _repeated(names) + _repeated(files):
        raise ValueError(f"{repeated!r} is listed twice")
    for file in manifest.files:
        if not _FILE.fullmatch(file.name) or file.name in {".", "..", MANIFEST_FILE}:
            raise ValueError(f"{file.name!r} is not a name for a file of a checkpoint")
    found = content_digest(manifest.tensors, manifest.partitions, manifest.files)
    if found != manifest.digest:
        raise ValueError(f"its content has the digest {found}, not {manifest.digest} as it says")


def _check_partition(entry: PartitionEntry) -> None:
    if not _PARTITION_FILE.fullmatch(entry.file):
        raise ValueError(f"{entry.file!r} is not a name for a partition")
    if not all(size and size % BLOCK_BYTES == 0 for size in (entry.size, entry.chunk_size)):
        raise ValueError(f"{entry.file}: size and chunk size are not multiples of {BLOCK_BYTES}")
    expected = -(-entry.size // entry.chunk_size)
    if len(entry.digests) != expected:
        raise ValueError(f"{entry.file}: {len(entry.digests)} digests for {expected} chunks")


def _check_tensor(entry: TensorEntry, partitions: Sequence[PartitionEntry]) -> None:
    size = tensor_bytes(entry.dtype, entry.shape)
    if entry.size != size:
        raise ValueError(f"tensor {entry.name!r} takes {size} bytes, not {entry.size}")
    if entry.offset % TENSOR_ALIGNMENT:
        raise ValueError(f"tensor {entry.name!r} is not aligned to {TENSOR_ALIGNMENT} bytes")
    if entry.partition >= len(partitions):
        raise ValueError(
            f"tensor {entry.name!r} is in partition {entry.partition}, which is not there"
        )
    if entry.offset + entry.size > partitions[entry.partition].size:
        raise ValueError(f"tensor {entry.name!r} ends after its partition")


def _check_overlaps(tensors: Sequence[TensorEntry]) -> None:
    """Tensors may share all of their bytes, being tied, but not some of them."""
    filled = (tensor for tensor in tensors if tensor.size)
    ordered = sorted(filled, key=lambda tensor: (tensor.partition, tensor.offset))
    for one, other in pairwise(ordered):
        apart = one.partition != other.partition or one.offset + one.size <= other.offset
        tied = (one.offset, one.size) == (other.offset, other.size)
        if not (apart or tied):
            raise ValueError(f"tensors {one.name!r} and {other.name!r} overlap")


def _repeated(names: Iterable[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]


def _parse_tensor(raw: Any) -> TensorEntry:
    return TensorEntry(
        name=_text(raw["name"]),
        dtype=_text(raw["dtype"]),
        shape=_each(raw["shape"], _natural),
        partition=_natural(raw["partition"]),
        offset=_natural(raw["offset"]),
        size=_natural(raw["size"]),
    )


def _parse_partition(raw: Any) -> PartitionEntry:
    return PartitionEntry(
        file=_text(raw["file"]),
        size=_natural(raw["size"]),
        chunk_size=_natural(raw["chunk_size"]),
        digests=_each(raw["digests"], _digest),
    )


def _parse_file(raw: Any) -> FileEntry:
    return FileEntry(
        name=_text(raw["name"]), size=_natural(raw["size"]), digest=_digest(raw["digest"])
    )


def _each(values: Any, parse: Callable[[Any], _Item]) -> tuple[_Item, ...]:
    if not isinstance(values, list):
        raise TypeError(f"expected a list, found {values!r}")
    return tuple(parse(value) for value in values)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected text, found {value!r}")
    return value


def _natural(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= _LARGEST:
        raise TypeError(f"expected a number from 0 to {_LARGEST}, found {value!r}")
    return value


def _digest(value: Any) -> str:
    if not is_digest(_text(value)):
        raise ValueError(f"expected an xxh3_128 digest, found {value!r}")
    return str(value)
