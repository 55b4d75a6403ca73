"""The SSD tier: a directory of checkpoints, each named by its digest, within a byte budget.

What a kill leaves behind can be told by its name, and is removed when the tier is opened. Which
sources lead to a checkpoint is kept in a small file inside its directory, so that one rename
makes both appear, or vanish.
"""

import fcntl
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

import structlog

from sllm.checkpoint.manifest import Manifest, corrupt, is_digest
from sllm.checkpoint.manifest_file import read_manifest
from sllm.clock import Clock
from sllm.errors import CheckpointCorrupt, InvalidArgument, InvalidSource
from sllm.node.ledger import Holding, Ledger
from sllm.node.records import Tier

_SOURCES_FILE = ".sources.json"
_INCOMING = ".incoming-"
_REMOVED = ".removed-"

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class SourceRecord:
    """What a checkpoint was imported from."""

    url: str
    fingerprint: str
    """Of the source's files when they were read."""
    dtype: str | None
    """Torch's name for what weights were converted to; None: they were not."""


@dataclass(slots=True, eq=False)
class SsdCopy:
    """A complete checkpoint on SSD."""

    manifest: Manifest
    directory: Path
    holding: Holding
    sources: list[SourceRecord] = field(default_factory=list)

    @property
    def urls(self) -> tuple[str, ...]:
        """Sources that lead to it."""
        return tuple(dict.fromkeys(record.url for record in self.sources))


class SsdTier:
    """The tier's contents. Belongs to one thread, but for `open`, `close` and `delete`."""

    def __init__(self, directory: Path, ledger: Ledger, lock: int) -> None:
        self.directory = directory
        self.ledger = ledger
        self.copies: dict[str, SsdCopy] = {}
        """By digest."""
        self._lock = lock

    @classmethod
    def open(cls, directory: Path, capacity_bytes: int, clock: Clock | None = None) -> Self:
        """Takes stock of `directory`, and removes what is incomplete, corrupt or over the budget.

        Raises:
            InvalidArgument: another process uses the directory.
        """
        directory.mkdir(parents=True, exist_ok=True)
        tier = cls(directory, Ledger(Tier.SSD, capacity_bytes, clock), _lock(directory))
        for path in list(_leftovers(directory)):
            delete(path)
        for path in sorted(_checkpoints(directory), key=_age):
            tier._take_in(path)
        for digest in tier.ledger.shrink_to_capacity():
            delete(tier.detach(digest))
        return tier

    def _take_in(self, path: Path) -> None:
        try:
            manifest = read_manifest(path)
            if manifest.digest != path.name:
                raise corrupt(path, f"holds the checkpoint {manifest.digest}")
        except (CheckpointCorrupt, InvalidSource) as error:
            _log.warning("node.checkpoint_dropped", path=str(path), problem=error.message)
            delete(path)
            return
        copy = SsdCopy(manifest, path, self.ledger.add(manifest.digest, manifest.disk_bytes))
        copy.sources.extend(_read_sources(path))
        self.copies[manifest.digest] = copy

    def find(self, record: SourceRecord) -> SsdCopy | None:
        """The copy that this source, in this state, leads to."""
        found = (copy for copy in self.copies.values() if record in copy.sources)
        return next(found, None)

    def last_known(self, url: str, dtype: str | None) -> SourceRecord | None:
        """What a source was when it was last imported."""
        for copy in self.copies.values():
            for record in copy.sources:
                if (record.url, record.dtype) == (url, dtype):
                    return record
        return None

    def touch(self, copy: SsdCopy) -> None:
        """Makes a copy the one used last, for the next process as well."""
        self.ledger.touch(copy.manifest.digest)
        os.utime(copy.directory)

    @contextmanager
    def reserved(self, size: int) -> Iterator[tuple[str, ...]]:
        """Room for a checkpoint of `size` bytes for as long as the block lasts: `land` in it.

        Gives the digests that had to go to make it: `detach` them before awaiting anything.

        Raises:
            ModelTooLarge: the tier could not hold it even if it were empty.
            NoCapacity: too much is leased or being loaded now.
        """
        victims = self.ledger.reserve(size)
        try:
            yield victims
        finally:
            self.ledger.unreserve(size)

    def temporary(self) -> Path:
        """A name for a checkpoint that is being written."""
        return self.directory / f"{_INCOMING}{uuid.uuid4().hex}"

    def land(self, written: Path, manifest: Manifest) -> SsdCopy:
        """Makes a checkpoint known that was written to a `temporary` directory.

        If the same content is here already, the new directory keeps its name, to be deleted.
        """
        known = self.copies.get(manifest.digest)
        if known is not None:
            return known
        directory = written.rename(self.directory / manifest.digest)
        holding = self.ledger.add(manifest.digest, manifest.disk_bytes)
        copy = self.copies[manifest.digest] = SsdCopy(manifest, directory, holding)
        return copy

    def record_source(self, copy: SsdCopy, record: SourceRecord) -> None:
        """Notes that a source leads to a copy now, and to no other."""
        for other in self.copies.values():
            kept = [r for r in other.sources if (r.url, r.dtype) != (record.url, record.dtype)]
            if len(kept) < len(other.sources):
                other.sources = kept
                _write_sources(other)
        copy.sources.append(record)
        _write_sources(copy)

    def detach(self, digest: str) -> Path:
        """Forgets a copy that the ledger has struck out; returns what is to be deleted."""
        copy = self.copies.pop(digest)
        return copy.directory.rename(self.directory / f"{_REMOVED}{uuid.uuid4().hex}")

    def check_integrity(self) -> None:
        """Raises AssertionError if books, memory and disk differ."""
        self.ledger.check_integrity(self.copies)
        on_disk = {path.name for path in _checkpoints(self.directory)}
        assert on_disk == set(self.copies), "the directory and the tier differ"
        for digest, copy in self.copies.items():
            assert copy.manifest.digest == digest == copy.directory.name, "a copy is misnamed"

    def close(self) -> None:
        """Lets another process use the directory."""
        os.close(self._lock)


def delete(directory: Path) -> None:
    """Removes a directory. What cannot be removed now is when the tier is next opened."""
    try:
        shutil.rmtree(directory)
    except OSError as error:
        _log.warning("node.not_deleted", path=str(directory), problem=str(error))


def _lock(directory: Path) -> int:
    """Held by the open file, and so given up however the process ends."""
    fd = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise InvalidArgument(f"another node agent uses {directory}; give each its own") from None
    return fd


def _checkpoints(directory: Path) -> Iterator[Path]:
    """Directories that are named as checkpoints are; others are not this tier's business."""
    return (path for path in directory.iterdir() if is_digest(path.name) and path.is_dir())


def _leftovers(directory: Path) -> Iterator[Path]:
    """What a kill left behind."""
    return (path for path in directory.iterdir() if path.name.startswith((_INCOMING, _REMOVED)))


def _age(directory: Path) -> int:
    """Sorts by last use: `touch` sets the time."""
    return directory.stat().st_mtime_ns


def _write_sources(copy: SsdCopy) -> None:
    """Replaces the file by renaming. If a crash loses it, the source is imported once more."""
    path = copy.directory / _SOURCES_FILE
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps([asdict(record) for record in copy.sources]))
    temporary.rename(path)


def _read_sources(directory: Path) -> Iterator[SourceRecord]:
    try:
        for record in json.loads((directory / _SOURCES_FILE).read_bytes()):
            yield SourceRecord(**record)
    except (OSError, ValueError, TypeError) as error:
        _log.info("node.sources_unknown", directory=str(directory), problem=str(error))
