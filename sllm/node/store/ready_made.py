"""What was made of checkpoints for engines: checkpoints like others, but that can be made again."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from sllm.checkpoint.format.manifest_file import read_manifest
from sllm.errors import CheckpointLeased, CheckpointNotFound, NoCapacity, SourceChanged
from sllm.node.store.promoter import Promoter
from sllm.node.store.removal import Removal
from sllm.node.tiers.checkpoints import Checkpoint, SourceRecord
from sllm.node.tiers.dram import DramTier
from sllm.node.tiers.ssd import SsdTier
from sllm.node.tiers.ssd_files import delete_all
from sllm.node.tiers.types import Tier
from sllm.node.transfers.loads import Threads
from sllm.node.transfers.sources import FoundSource
from sllm.node.transfers.speeds import Speed
from sllm.node.transfers.work import Form, Priority, Wish


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
        changed: Callable[[], None],
    ) -> None:
        """`changed` is called after every change of contents."""
        self._ssd = ssd
        self._dram = dram
        self._reading = reading
        self._promoter = promoter
        self._threads = threads
        self._removal = removal
        self._changed = changed

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
        """Reads what was made ready into the pool, if nothing has to go for it.

        Raises:
            SllmError: as `TierStore.promote`.
        """
        record = replace(found.record, form=form.name)
        copy = self._ssd.find(record)
        if copy is None or self._dram.ledger.free < copy.manifest.size_bytes:
            return
        wish = Wish(Tier.DRAM, Priority.PREFETCH)
        lease = await self._promoter.bring_up(_as_kept(found, record, copy), wish, lambda _: None)
        lease.release()

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
            removed = [*self._ssd.take_removed(), *([path] if path.exists() else [])]
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
        manifest = await self._threads.run(partial(read_manifest, written))
        if manifest.disk_bytes > size:
            raise NoCapacity(f"it takes {manifest.disk_bytes} bytes, and {size} were kept for it")
        if self._ssd.find(record.published) is None:
            raise SourceChanged(f"{record.url} has changed while it was made ready")
        copy = self._ssd.land(written, manifest)
        self._ssd.record_source(copy, record)
        self._changed()

    async def drop(self, record: SourceRecord) -> None:
        """Gives up what has turned out to be of no use, unless it is in use."""
        copy = self._ssd.find(record)
        if copy is not None:
            await self._evict(copy)

    async def _evict(self, copy: Checkpoint) -> None:
        with suppress(CheckpointLeased, CheckpointNotFound):
            await self._removal.evict(copy.manifest.digest, Tier.SSD)


def _as_kept(found: FoundSource, record: SourceRecord, copy: Checkpoint) -> FoundSource:
    """By the record that was kept, which says what it was made of."""
    return replace(found, record=next(one for one in copy.sources if one == record))
