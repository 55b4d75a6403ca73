"""What was made of checkpoints for engines: checkpoints like others, but that can be made again."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

import structlog

from sllm.checkpoint.format.form import WeightForm, read_form
from sllm.checkpoint.format.manifest import Manifest
from sllm.checkpoint.format.manifest_file import read_manifest
from sllm.checkpoint.sources.sources import LocalSource, parse_source
from sllm.errors import (
    CheckpointCorrupt,
    CheckpointLeased,
    CheckpointNotFound,
    CheckpointUnreadable,
    InvalidSource,
    ModelTooLarge,
    NoCapacity,
    SourceChanged,
    SourceForbidden,
    SourceNotFound,
    SourceUnavailable,
)
from sllm.node.store.lease import Lease
from sllm.node.store.packed_forms import PackedForm, find_packed_form
from sllm.node.store.promoter import Promoter
from sllm.node.store.remote_forms import RemoteForms
from sllm.node.store.removal import Removal
from sllm.node.tiers.checkpoints import Checkpoint, SourceRecord
from sllm.node.tiers.dram import DramTier
from sllm.node.tiers.in_place import InPlace, keep, place_of
from sllm.node.tiers.ssd import SsdTier
from sllm.node.tiers.ssd_files import delete_all
from sllm.node.tiers.types import Tier
from sllm.node.transfers.loads import Tell, Threads
from sllm.node.transfers.sources import FoundSource
from sllm.node.transfers.speeds import Speed
from sllm.node.transfers.work import Form, Priority, Wish

_log = structlog.get_logger()
_NOT_SERVED: Final = (
    *(CheckpointCorrupt, CheckpointUnreadable, NoCapacity, ModelTooLarge),
    *(SourceNotFound, SourceForbidden, SourceUnavailable, SourceChanged, InvalidSource),
)
"""Why a start goes on from what is published."""


class ReadyMade:
    """Takes them in, finds them and gives them up. Belongs to the event loop."""

    def __init__(
        self,
        ssd: SsdTier,
        dram: DramTier,
        reading: Speed,
        threads: Threads,
        promoter: Promoter,
        removal: Removal,
        elsewhere: RemoteForms,
        changed: Callable[[], None],
    ) -> None:
        """`changed` is called after every change of contents."""
        self._elsewhere = elsewhere
        self._ssd = ssd
        self._dram = dram
        self._reading = reading
        self._promoter = promoter
        self._threads = threads
        self._removal = removal
        self._changed = changed
        self._refused: set[SourceRecord] = set()
        """What lies within packed checkpoints and is of no use."""

    async def bring_up(
        self, found: FoundSource, form: Form, wish: Wish, tell: Tell
    ) -> Lease | None:
        """What was made ready of a source. None: there is none, it serves later, or cannot be had.

        Raises:
            SllmError: as `TierStore.promote`, where what is published could not be had either.
        """
        await self.adopt(found, form)
        ready = self.soonest(found, form) or await self._to_import(found, form)
        if ready is None:
            return None
        try:
            lease = await self._promoter.bring_up(ready, wish, tell)
            if lease.checkpoint.form is None:
                lease.checkpoint.form = await self._threads.run(partial(read_form, lease.directory))
            return lease
        except _NOT_SERVED as error:
            _log.warning("node.ready_made_not_served", problem=error.message)
            if isinstance(error, CheckpointCorrupt):
                self.refuse(ready.record)
            return None

    async def _to_import(self, found: FoundSource, form: Form) -> FoundSource | None:
        """What lies ready within a checkpoint elsewhere, where this node has neither of both."""
        record = replace(found.record, form=form.name)
        here = self._dram.find(found.record) or self._ssd.find(found.record)
        if here or record in self._refused:
            return None
        try:
            return await self._elsewhere.find(found, form)
        except (CheckpointCorrupt, InvalidSource, CheckpointUnreadable, OSError) as error:
            self._refused.add(record)
            _log.warning("node.packed_form_refused", url=record.url, problem=str(error))
            return None

    async def adopt(self, found: FoundSource, form: Form) -> None:
        """Makes known what lies ready within a packed checkpoint, to be read where it lies.

        Nothing goes for it. Where it is of no use, the start does without it.
        """
        made_of = found.record.identity
        record = replace(found.record, form=form.name, made_of=made_of)
        contents = found.contents
        if not isinstance(contents, LocalSource) or self._ssd.find(record):
            return
        if record in self._refused:
            return
        look = partial(find_packed_form, contents, record, self._dram.pool.chunk_bytes)
        try:
            packed = await self._threads.run(look)
            if packed and self.has_room(packed.kept_bytes):
                await self._keep(packed, record)
        except (CheckpointCorrupt, InvalidSource, CheckpointUnreadable, OSError) as error:
            self._refused.add(record)
            _log.warning("node.packed_form_refused", url=record.url, problem=str(error))

    async def _keep(self, packed: PackedForm, record: SourceRecord) -> None:
        files, manifest = packed.files, packed.files.packed
        assert manifest is not None
        async with self.making(packed.kept_bytes) as path:
            await self._threads.run(partial(keep, files, manifest, path))
            if self._ssd.find(record):
                return  # another start has been first
            place = place_of(files)
            self._land(path, manifest, record, packed.form, place)

    def refuse(self, record: SourceRecord) -> None:
        """Has what lies ready within a packed checkpoint not be taken again: it is of no use."""
        self._refused.add(record)

    def soonest(self, found: FoundSource, form: Form) -> FoundSource | None:
        """The source as it was made ready. None: it was not, or what is published serves sooner."""
        record = replace(found.record, form=form.name)
        in_pool, on_disk = self._dram.find(record), self._ssd.find(record)
        if in_pool is not None:
            return _as_kept(found, record, in_pool.checkpoint)
        if on_disk is None:
            return None
        size = on_disk.manifest.size_bytes
        reading = size / self._reading.bytes_per_second
        published = self._dram.find(found.record) is not None
        if published and (reading > form.gain_seconds or self._dram.ledger.free < size):
            return None
        return _as_kept(found, record, on_disk)

    async def read_ahead(self, found: FoundSource, form: Form) -> None:
        """Reads what was made ready into the pool.

        Nothing has to go for it, unless its checkpoint is pinned there: then it is what starts are
        to find.

        Raises:
            SllmError: as `TierStore.promote`.
        """
        await self.adopt(found, form)
        record = replace(found.record, form=form.name)
        copy = self._ssd.find(record)
        published = self._dram.find(found.record)
        pinned = published is not None and published.holding.pins > 0
        if copy is None or (not pinned and self._dram.ledger.free < copy.manifest.size_bytes):
            return
        wish = Wish(Tier.DRAM, Priority.PREFETCH)
        lease = await self._promoter.bring_up(_as_kept(found, record, copy), wish, lambda _: None)
        lease.release()

    def made_of(self, source: str, dtype: str | None, form: str) -> str:
        """Digest of the checkpoint that was made ready of a source, as that is or was.

        Empty: none was. Asks no disk.
        """
        try:
            url = parse_source(source).url
        except InvalidSource:
            return ""
        wanted = url, dtype, form
        in_pool = [copy.checkpoint for copy in self._dram.copies.values()]
        records = (one for copy in (*in_pool, *self._ssd.copies.values()) for one in copy.sources)
        found = (one.made_of for one in records if (one.url, one.dtype, one.form) == wanted)
        return next(found, "")

    def is_lacking(self, record: SourceRecord) -> bool:
        """Whether it could be made of a checkpoint that is here, and has not been."""
        return self._ssd.find(record) is None and self._ssd.find(record.published) is not None

    def has_room(self, size: int) -> bool:
        """Whether there is so much on SSD, and nothing would have to go."""
        return not self._ssd.problem and self._ssd.ledger.free >= size

    async def drop_obsolete(self, record: SourceRecord) -> None:
        """Gives up what was made of the same for the same engine in another form.

        As for an earlier version: nobody asks for it any more.
        """
        engine = record.form.rpartition("-")[0]
        for digest in self._ssd.made_of(record.made_of):
            copy = self._ssd.copies[digest]
            if copy.made_for == engine and record not in copy.sources:
                await self._evict(copy)

    @asynccontextmanager
    async def making(self, size: int) -> AsyncIterator[Path]:
        """A directory to make one in, and room for it; it is not there yet, and gone afterwards.

        Raises:
            ModelTooLarge, NoCapacity: there is no room.
        """
        path = self._ssd.temporary()
        try:
            with self._ssd.reserved(size) as victims:
                assert not victims, "something has gone for what can be made again"
                yield path
        finally:
            # Where several ranks have written, each has done so beside it.
            removed = [*self._ssd.take_removed(), *path.parent.glob(f"{path.name}*")]
            await asyncio.to_thread(delete_all, removed)

    async def add(self, record: SourceRecord, written: Path, size: int) -> None:
        """Takes in what was written to a directory of `making`. It is not to wait in there then.

        Args:
            record: the source, with what it was made ready for, and of which checkpoint.
            written: the directory.
            size: for which there is room.

        Raises:
            CheckpointCorrupt: it holds no checkpoint.
            NoCapacity: it takes more than there is room for.
            SourceChanged: the source leads to something else by now.
        """
        manifest, form = await self._threads.run(partial(_read, written))
        if manifest.disk_bytes > size:
            raise NoCapacity(f"it takes {manifest.disk_bytes} bytes, and {size} were kept for it")
        if self._ssd.find(record.published) is None:
            raise SourceChanged(f"{record.url} has changed while it was made ready")
        self._land(written, manifest, record, form)

    def _land(
        self,
        written: Path,
        manifest: Manifest,
        record: SourceRecord,
        form: WeightForm | None,
        place: InPlace | None = None,
    ) -> None:
        copy = self._ssd.land(written, manifest, place)
        copy.form = form
        self._ssd.record_source(copy, record)
        self._changed()

    async def drop(self, record: SourceRecord) -> None:
        """Gives up what has turned out to be of no use, unless it is in use."""
        self.refuse(record)
        copy = self._ssd.find(record)
        if copy is not None:
            await self._evict(copy)

    async def _evict(self, copy: Checkpoint) -> None:
        with suppress(CheckpointLeased, CheckpointNotFound):
            await self._removal.evict(copy.manifest.digest, Tier.SSD)


def _read(directory: Path) -> tuple[Manifest, WeightForm | None]:
    return read_manifest(directory), read_form(directory)


def _as_kept(found: FoundSource, record: SourceRecord, copy: Checkpoint) -> FoundSource:
    """By the record that was kept, which says what it was made of."""
    return replace(found, record=next(one for one in copy.sources if one == record))
