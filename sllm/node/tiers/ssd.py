"""The SSD tier: a directory of checkpoints, each named by its digest, within a byte budget.

Names tell what a kill has left behind. Half-written checkpoints stay for a day, as long as there is
room, since the next import of one goes on with it; the rest is removed when the tier is opened. A
small file inside a checkpoint's directory says which sources lead to it, so that one rename makes
both appear, or vanish.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import structlog

from sllm.checkpoint.format.form import read_form
from sllm.checkpoint.format.manifest import CHUNK_BYTES, Manifest, corrupt
from sllm.checkpoint.format.manifest_file import read_manifest
from sllm.clock import Clock
from sllm.decay import Decaying
from sllm.errors import CheckpointCorrupt, CheckpointUnreadable, SllmError
from sllm.node.tiers import first_use, metrics, ssd_files
from sllm.node.tiers.checkpoints import Checkpoint, SourceRecord
from sllm.node.tiers.disk_refusals import REFUSALS, problem_of
from sllm.node.tiers.first_use import FirstUse
from sllm.node.tiers.in_place import KEPT_FILE, InPlace, restore
from sllm.node.tiers.ledger import Holding, Ledger
from sllm.node.tiers.types import Tier

_log = structlog.get_logger()


@dataclass(slots=True, eq=False)
class SsdCopy(Checkpoint):
    """A complete checkpoint on SSD."""

    holding: Holding
    in_place: InPlace | None = None
    """Where its bytes are read, if that is not `directory`."""
    first_use: FirstUse | None = None
    """In which order its tensors are used. None: no model of it has run here."""

    @property
    def weights(self) -> Path:
        """The directory of its partitions."""
        return self.in_place.directory if self.in_place else self.directory

    @property
    def replaceable(self) -> bool:
        """Whether there may be another copy that is the same checkpoint."""
        return self.in_place is None or self.in_place.packed


class SsdTier:
    """The tier's contents. Belongs to one thread, but for `open` and `close`.

    On a disk that takes nothing it goes on with what is there: what cannot be moved out of the way
    is a stray, which nobody counts.
    """

    def __init__(self, directory: Path, ledger: Ledger) -> None:
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
        self._strays: set[str] = set()
        """Names of checkpoints that are there, and could not be read or moved."""
        self._removed: list[Path] = []
        self._lock: int | None = None

    @classmethod
    def open(
        cls,
        directory: Path,
        capacity_bytes: int,
        clock: Clock | None = None,
        chunk_bytes: int = CHUNK_BYTES,
    ) -> Self:
        """Takes stock of `directory`, and removes what is incomplete, corrupt or over the budget.

        A disk that takes nothing is no reason not to start: `problem` says so.

        Args:
            directory: the tier's; made if it is not there.
            capacity_bytes: its budget.
            clock: tells when copies are used.
            chunk_bytes: of the chunks in which safetensors are read in place.

        Raises:
            InvalidArgument: another process uses the directory.
        """
        tier = cls(directory, Ledger(Tier.SSD, capacity_bytes, clock))
        tier._take_possession()
        for path in list(ssd_files.leftovers(directory)):
            ssd_files.delete(path)
        for path in ssd_files.partials(directory):
            tier._keep(path)
        for path in ssd_files.checkpoints(directory):
            tier._take_in(path, chunk_bytes)
        # The budget may be smaller than when they were written.
        for digest in tier.ledger.shrink_to_capacity():
            tier.detach(digest)
        for path in tier.take_removed():
            ssd_files.delete(path)
        return tier

    def _take_possession(self) -> None:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._lock = ssd_files.lock(self.directory)
        except OSError as error:
            if error.errno not in REFUSALS:
                raise
            self.refused(error)

    def refused(self, error: OSError) -> None:
        """Notes that the disk takes nothing at present."""
        self.problem = problem_of(self.directory, error)
        _log.warning("node.ssd_refuses", problem=self.problem)
        metrics.record_refusal()

    def _take_in(self, path: Path, chunk_bytes: int) -> None:
        try:
            copy, form = self._restored(path, chunk_bytes), read_form(path)
        except (CheckpointUnreadable, OSError) as error:
            _log.warning("node.checkpoint_unreadable", path=str(path), problem=str(error))
            self._strays.add(path.name)
            return
        except SllmError as error:
            _log.warning("node.checkpoint_dropped", path=str(path), problem=error.message)
            self._set_aside(path)
            return
        copy.sources.extend(ssd_files.read_sources(path))
        copy.first_use = first_use.read(path, copy.manifest)
        copy.form = form
        self.copies[path.name] = copy

    def _restored(self, path: Path, chunk_bytes: int) -> SsdCopy:
        if (path / KEPT_FILE).exists():
            manifest, place = restore(path, chunk_bytes)
            return SsdCopy(manifest, path, self._entered(path), place)
        manifest = read_manifest(path)
        if manifest.digest != path.name:
            raise corrupt(path, f"holds the checkpoint {manifest.digest}")
        if any(entry.chunk_size != chunk_bytes for entry in manifest.partitions):
            raise corrupt(path, f"is not in chunks of {chunk_bytes} bytes, as the pool is")
        return SsdCopy(manifest, path, self.ledger.add(path.name, manifest.disk_bytes))

    def _entered(self, path: Path) -> Holding:
        return self.ledger.add(path.name, ssd_files.disk_bytes(path))

    def find(self, record: SourceRecord, *, packed: bool = False) -> SsdCopy | None:
        """The copy that this source, in this state, leads to; `packed`: not one in place."""
        found = (copy for copy in self.copies.values() if record in copy.sources)
        return next((copy for copy in found if not (packed and copy.in_place)), None)

    def last_known(self, url: str, dtype: str | None) -> SourceRecord | None:
        """What a source was when it was last imported."""
        for copy in self.copies.values():
            for record in copy.sources:
                if (record.url, record.dtype, record.form) == (url, dtype, ""):
                    return record
        return None

    def touch(self, copy: SsdCopy) -> None:
        """Makes a copy the one used last, for the next process as well."""
        self.ledger.touch(copy.manifest.digest)
        ssd_files.touch(copy.directory)

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
        """The directory to write a source's checkpoint to; `land` adds it, within the block.

        It may be there already, from an import that broke off. If the block fails, what it has
        written stays for the next one.
        """
        path = self.directory / ssd_files.partial_name(record)
        if path.name in self._partials:
            self._partials.remove(path.name)
            self.ledger.remove(path.name)
        try:
            yield path
        finally:
            if path.exists():
                self._keep(path)

    def _keep(self, path: Path) -> None:
        """Enters a half-written checkpoint, as what is missed least."""
        self._partials.add(path.name)
        self._entered(path).uses = Decaying()

    def temporary(self) -> Path:
        """A name for a directory that the next start removes if a kill leaves it behind."""
        return ssd_files.new_removed(self.directory)

    def land(self, written: Path, manifest: Manifest, place: InPlace | None = None) -> SsdCopy:
        """Adds a checkpoint that was written, or what is kept of one in place.

        If the same content is here already, `take_removed` gives what was written.
        """
        known = self.copies.get(manifest.digest)
        if known is not None and known.in_place and not place:
            return self._move_in(known, written, manifest)
        if known is not None:
            self._set_aside(written)
            return known
        if manifest.digest in self._strays:
            self._set_aside(self.directory / manifest.digest)
        directory = written.rename(self.directory / manifest.digest)
        self._strays.discard(manifest.digest)
        size = ssd_files.disk_bytes(directory) if place else manifest.disk_bytes
        holding = self.ledger.add(manifest.digest, size)
        copy = self.copies[manifest.digest] = SsdCopy(manifest, directory, holding, place)
        return copy

    def _move_in(self, copy: SsdCopy, written: Path, manifest: Manifest) -> SsdCopy:
        """Replaces a copy that was read in place by one that is read here."""
        self._set_aside(copy.directory)
        written.rename(copy.directory)
        copy.in_place = None
        copy.holding.size = manifest.disk_bytes
        return copy

    def quarantine(self, copy: SsdCopy, error: CheckpointCorrupt) -> None:
        """Sets a corrupt copy aside, leased or not. It goes when room is needed, or at a start."""
        digest, size = copy.manifest.digest, copy.holding.size
        self.ledger.remove(digest)
        del self.copies[digest]
        path = ssd_files.move(copy.directory, ssd_files.new_quarantined(self.directory))
        if path is None:
            self._strays.add(digest)
        else:
            self._quarantined.add(path.name)
            self.ledger.add(path.name, size).uses = Decaying()
        metrics.record_quarantine()
        where = str(path or copy.directory)
        _log.error("node.checkpoint_quarantined", path=where, problem=error.message)

    def take_removed(self) -> list[Path]:
        """Directories that are to be deleted, once each."""
        removed, self._removed = self._removed, []
        return removed

    def record_source(self, copy: SsdCopy, record: SourceRecord) -> None:
        """Notes that a source leads to a copy now, and to no other."""
        # The source may have led to another checkpoint before it was changed.
        for other in self.copies.values():
            kept = [one for one in other.sources if not _is_replaced(one, record)]
            if len(kept) < len(other.sources):
                other.sources = kept
                ssd_files.write_sources(other.directory, kept)
        copy.sources.append(record)
        ssd_files.write_sources(copy.directory, copy.sources)

    def made_of(self, digest: str) -> tuple[str, ...]:
        """Digests of what was made ready of a checkpoint."""
        return tuple(
            name
            for name, copy in self.copies.items()
            if any(record.made_of == digest for record in copy.sources)
        )

    def forget_made_of(self, name: str, digest: str) -> bool:
        """Notes that what a copy was made ready of goes; whether it was made of others as well."""
        copy = self.copies[name]
        copy.sources = [record for record in copy.sources if record.made_of != digest]
        ssd_files.write_sources(copy.directory, copy.sources)
        return bool(copy.sources)

    def detach(self, name: str) -> None:
        """Forgets a copy, whole, half-written or quarantined, that the ledger has struck out.

        `take_removed` gives what is to be deleted.
        """
        self._partials.discard(name)
        self._quarantined.discard(name)
        self.copies.pop(name, None)
        self._set_aside(self.directory / name)

    def _set_aside(self, path: Path) -> None:
        """Marks a directory to be deleted; if it cannot be moved, it stays where it is."""
        self._strays.discard(path.name)
        # One rename has it vanish at once; deleting it takes a while, and a thread.
        removed = ssd_files.move(path, self.temporary())
        if removed is None:
            self._strays.add(path.name)
        else:
            self._removed.append(removed)

    def check_integrity(self) -> None:
        """Raises AssertionError if books, memory and disk differ."""
        self.ledger.check_integrity({*self.copies, *self._partials, *self._quarantined})
        assert all((self.directory / name).exists() for name in self._quarantined), "one is gone"
        partials = {path.name for path in ssd_files.partials(self.directory)}
        assert partials - self._strays == self._partials, "a half-written one is not known"
        on_disk = {path.name for path in ssd_files.checkpoints(self.directory)}
        assert on_disk - self._strays == set(self.copies), "the directory and the tier differ"
        for digest, copy in self.copies.items():
            assert copy.manifest.digest == digest == copy.directory.name, "a copy is misnamed"

    def close(self) -> None:
        """Lets another process use the directory."""
        if self._lock is not None:
            os.close(self._lock)


def _is_replaced(known: SourceRecord, record: SourceRecord) -> bool:
    """Whether a source leads elsewhere now; what was made of another state of it serves nobody."""
    if (known.url, known.dtype) != (record.url, record.dtype):
        return False
    if record.form:
        return known.form == record.form
    return not known.form or known.fingerprint != record.fingerprint
