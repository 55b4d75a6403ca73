"""Local checkpoints that are served where they lie, and what a node keeps of them.

A node keeps, in a directory of its own, the model's small files, and the digests that the chunks of
safetensors had when they were first read. A copy in the pool stays whole whatever becomes of the
source, and the node notices bytes that change on the disk although nobody wrote to the file.
Checkpoints that were packed have digests of their own, and an identity that follows from these.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import xxhash

from sllm.checkpoint.format.layout import lie_as_used
from sllm.checkpoint.format.manifest import Manifest, PartitionEntry, corrupt
from sllm.checkpoint.format.plain_files import read_plain
from sllm.checkpoint.format.room import Room
from sllm.checkpoint.reading.weights import in_place
from sllm.checkpoint.sources.file_names import carried_name
from sllm.checkpoint.sources.sources import LocalSource, SourceFiles, find, fingerprint
from sllm.node.tiers.checkpoints import SourceRecord

KEPT_FILE = ".in-place.json"
"""Tells the directory of a source that is served in place from a checkpoint of our own."""


@dataclass(frozen=True, slots=True)
class InPlace:
    """The place of a checkpoint that is read where it lies."""

    directory: Path
    fingerprint: str
    """Of the files when their headers were read."""
    packed: bool = False
    """Whether it was packed: then a copy from elsewhere would be the same checkpoint."""
    room: Room | None = None
    """Where its files may lie."""

    def check_unchanged(self) -> None:
        """Makes sure that nothing has changed while it was read.

        Raises:
            CheckpointCorrupt: a file was written to, added or removed.
            SourceNotFound: the directory is gone.
        """
        if fingerprint(LocalSource(self.directory)) != self.fingerprint:
            raise corrupt(self.directory, "was changed while it was read; try again")


def can_stay(files: SourceFiles, record: SourceRecord, chunk_bytes: int) -> bool:
    """Whether a source can be served where it lies: as it is, in chunks of the pool's size.

    Safetensors whose experts lie apart cannot: every worker would fuse them in memory of its own.
    """
    if record.dtype is not None:
        return False
    if files.packed is None:
        return lie_as_used(files.tensors)
    return all(entry.chunk_size == chunk_bytes for entry in files.packed.partitions)


def place_of(files: SourceFiles) -> InPlace:
    """The place of a source that is to be read where it lies."""
    packed = files.packed is not None
    return InPlace(files.directory, files.fingerprint, packed=packed, room=files.room)


def describe(files: SourceFiles, chunk_bytes: int) -> Manifest:
    """A checkpoint's own manifest; safetensors files as partitions, under an identity of their own.

    The identity follows from the headers, and from the place, names, sizes and times of change of
    all files: a file that is written to makes another checkpoint.
    """
    if files.packed is not None:
        return files.packed
    plain = in_place(files.tensors, chunk_bytes)
    described = {
        "url": files.origin.url,
        "fingerprint": files.fingerprint,
        "tensors": [asdict(tensor) for tensor in plain.tensors],
    }
    canonical = json.dumps(described, sort_keys=True, separators=(",", ":"))
    return replace(plain, digest=xxhash.xxh3_128_hexdigest(canonical.encode()))


def keep(files: SourceFiles, manifest: Manifest, directory: Path) -> None:
    """Makes a directory of what is kept of a source.

    Raises:
        OSError: the disk is full, or fails.
    """
    directory.mkdir()
    for path in files.files:
        (directory / carried_name(path)).write_bytes(read_plain(path, files.room))
    _write(directory, files.directory, manifest)


def restore(directory: Path, chunk_bytes: int) -> tuple[Manifest, InPlace]:
    """What an earlier process has kept, if the source is what it was.

    Raises:
        SllmError: the source is gone, or another by now.
        CheckpointCorrupt: what was kept cannot be used.
    """
    try:
        kept = json.loads((directory / KEPT_FILE).read_bytes())
        source, digests = LocalSource(Path(kept["directory"])), dict(kept["digests"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise corrupt(directory / KEPT_FILE, f"cannot be used: {error!r}") from error
    files = find(source)
    manifest = describe(files, chunk_bytes)
    wrong_chunks = any(entry.chunk_size != chunk_bytes for entry in manifest.partitions)
    if manifest.digest != directory.name or wrong_chunks:
        raise corrupt(source.directory, "is not what it was")
    for path in files.files:
        copy = directory / carried_name(path)
        if not copy.is_file() or copy.stat().st_size != path.stat().st_size:
            raise corrupt(copy, f"is not the whole of {path}")
    place = place_of(files)
    return with_digests(manifest, digests), place


def with_digests(manifest: Manifest, digests: Mapping[str, Sequence[str]]) -> Manifest:
    """A manifest with the digests of its partitions' chunks, by file, where they are known."""
    partitions = (_with(entry, digests.get(entry.file, ())) for entry in manifest.partitions)
    return replace(manifest, partitions=tuple(partitions))


def _with(entry: PartitionEntry, digests: Sequence[str]) -> PartitionEntry:
    known = len(digests) == entry.chunk_count
    return replace(entry, digests=tuple(digests) if known else ())


def remember(directory: Path, place: InPlace, manifest: Manifest) -> None:
    """Keeps the digests of a manifest. If a crash loses them, the next read records them anew."""
    _write(directory, place.directory, manifest)


def _write(directory: Path, source: Path, manifest: Manifest) -> None:
    digests = {entry.file: entry.digests for entry in manifest.partitions}
    temporary = directory / f"{KEPT_FILE}.new"
    with temporary.open("w", encoding="utf-8") as file:
        json.dump({"directory": str(source), "digests": digests}, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(directory / KEPT_FILE)
