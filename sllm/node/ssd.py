"""The SSD tier: a directory of checkpoints, each named by its digest, within a byte budget.

What a kill leaves behind can be told by its name. Half-written checkpoints are kept for a day, as
long as there is room, since whoever asks for one again goes on with it; the rest is removed when
the tier is opened. Which sources lead to a checkpoint is kept in a small file inside its directory,
so that one rename makes both appear, or vanish.
"""

import fcntl
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import structlog
import xxhash

from sllm.checkpoint.manifest import CHUNK_BYTES, Manifest, corrupt, is_digest
from sllm.checkpoint.manifest_file import read_manifest
from sllm.clock import Clock
from sllm.decay import Decaying
from sllm.errors import CheckpointCorrupt, InvalidArgument, SllmError
from sllm.node import metrics
from sllm.node.checkpoints import Checkpoint, SourceRecord
from sllm.node.in_place import KEPT_FILE, InPlace, restore
from sllm.node.ledger import Holding, Ledger
from sllm.node.records import Tier

_SOURCES_FILE = ".sources.json"
_PARTIAL = ".partial-"
_REMOVED = ".removed-"
_QUARANTINED = ".quarantined-"
STAGED = ".staged-"
"""Begins the names of directories of small files that were fetched from remote sources."""

PARTIAL_SECONDS = 24 * 3600.0
"""As long a half-written checkpoint is kept that nobody asks for."""

_log = structlog.get_logger()


@dataclass(slots=True, eq=False)
class SsdCopy(Checkpoint):
    """A complete checkpoint on SSD."""

    holding: Holding
    in_place: InPlace | None = None
    """Where its bytes are read, if that is not `directory`."""

    @property
    def weights(self) -> Path:
        """The directory of its partitions."""
        return self.in_place.directory if self.in_place else self.directory


class SsdTier:
    """The tier's contents. Belongs to one thread, but for `open`, `close` and `delete`."""

    def __init__(self, directory: Path, ledger: Ledger, lock: int) -> None:
        self.directory = directory
        self.ledger = ledger
        self.copies: dict[str, SsdCopy] = {}
        """By digest."""
        self.problem = ""
        """Why the disk has refused what came last; empty if it has not."""
        self._partials: set[str] = set()
        """Names of half-written checkpoints that nobody writes to. The ledger has them, too."""
        self._quarantined: set[str] = set()
        """Names of copies that are not what they should be. The ledger has them, too."""
        self._removed: list[Path] = []
        self._lock = lock

    @classmethod
    def open(
        cls,
        directory: Path,
        capacity_bytes: int,
        clock: Clock | None = None,
        chunk_bytes: int = CHUNK_BYTES,
    ) -> Self:
        """Takes stock of `directory`, and removes what is incomplete, corrupt or over the budget.

        Args:
            directory: the tier's; made if it is not there.
            capacity_bytes: its budget.
            clock: tells when copies are used.
            chunk_bytes: of the chunks in which safetensors are read in place.

        Raises:
            InvalidArgument: another process uses the directory.
        """
        directory.mkdir(parents=True, exist_ok=True)
        tier = cls(directory, Ledger(Tier.SSD, capacity_bytes, clock), _lock(directory))
        for path in list(_leftovers(directory)):
            delete(path)
        for path in sorted(_partials(directory), key=_age):
            tier._keep(path)
        for path in sorted(_checkpoints(directory), key=_age):
            tier._take_in(path, chunk_bytes)
        for digest in tier.ledger.shrink_to_capacity():
            delete(tier.detach(digest))
        return tier

    def _take_in(self, path: Path, chunk_bytes: int) -> None:
        try:
            copy = self._restored(path, chunk_bytes)
        except SllmError as error:
            _log.warning("node.checkpoint_dropped", path=str(path), problem=error.message)
            delete(path)
            return
        copy.sources.extend(_read_sources(path))
        self.copies[path.name] = copy

    def _restored(self, path: Path, chunk_bytes: int) -> SsdCopy:
        if (path / KEPT_FILE).exists():
            manifest, place = restore(path, chunk_bytes)
            return SsdCopy(manifest, path, self.ledger.add(path.name, _disk_bytes(path)), place)
        manifest = read_manifest(path)
        if manifest.digest != path.name:
            raise corrupt(path, f"holds the checkpoint {manifest.digest}")
        return SsdCopy(manifest, path, self.ledger.add(path.name, manifest.disk_bytes))

    def find(self, record: SourceRecord, *, packed: bool = False) -> SsdCopy | None:
        """The copy that this source, in this state, leads to; `packed`: not one in place."""
        found = (copy for copy in self.copies.values() if record in copy.sources)
        return next((copy for copy in found if not (packed and copy.in_place)), None)

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

    @contextmanager
    def half_written(self, record: SourceRecord) -> Iterator[Path]:
        """Where the checkpoint of a source is written, to be made known by `land` in the block.

        The directory may be there already: an earlier import has broken off. What this one
        leaves there if the block fails is kept for the next.
        """
        path = self.directory / _partial_name(record)
        if path.name in self._partials:
            self._partials.remove(path.name)
            self.ledger.remove(path.name)
        try:
            yield path
        finally:
            if path.exists():
                self._keep(path)

    def _keep(self, path: Path) -> None:
        """Whatever is whole is missed more than this."""
        self._partials.add(path.name)
        self.ledger.add(path.name, _disk_bytes(path)).uses = Decaying()

    def temporary(self) -> Path:
        """A name for a directory of which a kill leaves nothing that is of use."""
        return self.directory / f"{_REMOVED}{uuid.uuid4().hex}"

    def land(self, written: Path, manifest: Manifest, place: InPlace | None = None) -> SsdCopy:
        """Makes a checkpoint known that was written, or what is kept of one in place.

        If the same content is here already, `take_removed` gives what was written.
        """
        known = self.copies.get(manifest.digest)
        if known is not None:
            self._removed.append(self._rename_away(written))
            return known
        directory = written.rename(self.directory / manifest.digest)
        size = _disk_bytes(directory) if place else manifest.disk_bytes
        holding = self.ledger.add(manifest.digest, size)
        copy = self.copies[manifest.digest] = SsdCopy(manifest, directory, holding, place)
        return copy

    def quarantine(self, copy: SsdCopy, error: CheckpointCorrupt) -> None:
        """Sets a copy aside that is not what it should be, leased or not.

        Nothing of it is to be believed. It goes when room is needed, or at the next start.
        """
        digest, size = copy.manifest.digest, copy.holding.size
        self.ledger.remove(digest)
        del self.copies[digest]
        path = copy.directory.rename(self.directory / f"{_QUARANTINED}{uuid.uuid4().hex}")
        self._quarantined.add(path.name)
        self.ledger.add(path.name, size).uses = Decaying()
        metrics.record_quarantine()
        _log.error("node.checkpoint_quarantined", path=str(path), problem=error.message)

    def take_removed(self) -> list[Path]:
        """Directories that are to be deleted, once each."""
        removed, self._removed = self._removed, []
        return removed

    def record_source(self, copy: SsdCopy, record: SourceRecord) -> None:
        """Notes that a source leads to a copy now, and to no other."""
        for other in self.copies.values():
            kept = [r for r in other.sources if (r.url, r.dtype) != (record.url, record.dtype)]
            if len(kept) < len(other.sources):
                other.sources = kept
                _write_sources(other)
        copy.sources.append(record)
        _write_sources(copy)

    def detach(self, name: str) -> Path:
        """Forgets a copy that the ledger has struck out, a half-written or a bad one as well.

        Returns:
            What is to be deleted.
        """
        self._partials.discard(name)
        self._quarantined.discard(name)
        self.copies.pop(name, None)
        return self._rename_away(self.directory / name)

    def _rename_away(self, path: Path) -> Path:
        return path.rename(self.temporary())

    def check_integrity(self) -> None:
        """Raises AssertionError if books, memory and disk differ."""
        self.ledger.check_integrity({*self.copies, *self._partials, *self._quarantined})
        assert all((self.directory / name).exists() for name in self._quarantined), "one is gone"
        assert {path.name for path in _partials(self.directory)} == self._partials, "a stray"
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


def _disk_bytes(directory: Path) -> int:
    """What the files in a directory take."""
    return sum(file.stat().st_blocks * 512 for file in directory.iterdir())


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


def _partials(directory: Path) -> Iterator[Path]:
    """Half-written checkpoints."""
    return (path for path in directory.iterdir() if path.name.startswith(_PARTIAL))


def _partial_name(record: SourceRecord) -> str:
    """The same for the same state of a source, in every process."""
    return _PARTIAL + xxhash.xxh3_128_hexdigest(json.dumps(asdict(record)).encode())


def _leftovers(directory: Path) -> Iterator[Path]:
    """What a kill left behind, and nobody will go on with."""
    oldest = time.time() - PARTIAL_SECONDS
    yield from (path for path in _partials(directory) if _last_written(path) < oldest)
    prefixes = (_REMOVED, _QUARANTINED, STAGED)
    yield from (path for path in directory.iterdir() if path.name.startswith(prefixes))


def _last_written(directory: Path) -> float:
    """By the wall clock; 0 if nothing was."""
    return max((file.stat().st_mtime for file in directory.iterdir()), default=0.0)


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
