"""From a source to SSD; into the pool in the same pass, if the checkpoint is wanted there.

In one pass: each chunk is filled at its place in the pool, and written to SSD from there.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import structlog

from sllm.checkpoint.files.direct_io import flush_directory
from sllm.checkpoint.format.manifest import Manifest, corrupt
from sllm.checkpoint.importing.chunk_workers import ChunkWorkers
from sllm.checkpoint.importing.import_plan import ImportPlan, plan_import
from sllm.checkpoint.importing.importer import import_checkpoint
from sllm.checkpoint.sources.sources import LocalSource, SourceFiles
from sllm.clock import Clock
from sllm.errors import ModelTooLarge, NoCapacity
from sllm.node.peers.exchange import Exchange
from sllm.node.peers.types import Network, Peers
from sllm.node.tiers.checkpoints import Checkpoint, SourceRecord
from sllm.node.tiers.disk_refusals import SmallFiles, has_room, is_refusal
from sllm.node.tiers.dram import Chunks, DramCopy, DramTier
from sllm.node.tiers.in_place import can_stay, describe, keep, place_of
from sllm.node.tiers.ssd import SsdCopy, SsdTier
from sllm.node.tiers.ssd_files import delete_all
from sllm.node.tiers.types import Tier
from sllm.node.transfers.import_steps import steps_of
from sllm.node.transfers.loads import Load, Threads
from sllm.node.transfers.sources import FoundSource, Sources
from sllm.node.transfers.speeds import Speeds
from sllm.node.transfers.work import LoadPhase, Priority, Step

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import has left."""

    copy: SsdCopy | DramCopy
    """On SSD; in the pool if the disk could not take it. Leased once for everybody who joined."""
    steps: tuple[Step, ...]
    """Empty if nothing had to move."""


@dataclass(frozen=True, slots=True)
class _Job:
    """An import that is to move bytes."""

    record: SourceRecord
    plan: ImportPlan
    chunks: Chunks | None
    """Of the pool, to be filled on the way. None: it is for SSD alone."""
    load: Load[Imported]
    peers: Peers | None


class Imports:
    """The imports of a node. Belongs to the event loop."""

    def __init__(
        self,
        ssd: SsdTier,
        dram: DramTier,
        sources: Sources,
        threads: Threads,
        speeds: Speeds,
        clock: Clock,
        fetch_threads: int,
        changed: Callable[[], None],
        network: Network | None = None,
    ) -> None:
        self.exchanges: dict[SourceRecord, Exchange] = {}
        """Of imports whose chunks are shared with other nodes, by source; one import of each."""
        self._network = network
        self.loads: dict[tuple[SourceRecord, bool], Load[Imported]] = {}
        """Under way, by source and by whether it is to be packed."""
        self._ssd = ssd
        self._dram = dram
        self._sources = sources
        self._threads = threads
        self._speeds = speeds
        self._clock = clock
        self._small_files = SmallFiles()
        self._workers = ChunkWorkers(dram.pool.chunk_bytes, fetch_threads)
        self._changed = changed

    def load(
        self,
        source: FoundSource,
        tier: Tier,
        priority: Priority,
        *,
        pack: bool,
        peers: Peers | None = None,
    ) -> Load[Imported]:
        """The import of a source that is under way, or a new one.

        Args:
            source: as it was found; imports of the same state of a source are the same.
            tier: DRAM to fill chunks of the pool on the way.
            priority: whose chunks go first; joining may raise it.
            pack: convert it although it could be read where it lies.
            peers: other nodes to have its chunks from.
        """
        key = source.record, pack
        load = self.loads.get(key)
        if load is None:
            before = self.loads.get((source.record, not pack))
            load = self.loads[key] = Load(LoadPhase.IMPORT, Tier.REMOTE, self._changed, priority)
            load.begin(self._run(source, tier, pack, load, peers, before))
        elif peers and (exchange := self.exchanges.get(source.record)):
            exchange.add(peers)
        return load

    async def _run(
        self,
        source: FoundSource,
        tier: Tier,
        pack: bool,
        load: Load[Imported],
        peers: Peers | None,
        before: Load[Imported] | None,
    ) -> Imported:
        try:
            imported = await self._after(before, source, pack)
            imported = imported or await self._bring(source, tier, pack, load, peers)
            load.land(imported.copy.holding)
            self._record(imported.copy, source.record)
        finally:
            # Not before: whoever has chunks from here finds them where they arrived, or landed.
            exchange = self.exchanges.pop(source.record, None)
            del self.loads[source.record, pack]
            self._changed()
            if exchange is not None:
                await asyncio.to_thread(exchange.close)
        if isinstance(imported.copy, SsdCopy):
            removed = self._ssd.take_removed()
            await self._threads.run(partial(_settle, self._ssd.directory, removed))
        return imported

    async def _after(
        self, before: Load[Imported] | None, source: FoundSource, pack: bool
    ) -> Imported | None:
        """What the other import of a source has left, if that serves here as well.

        Both would write to the same place.
        """
        if before is None:
            return None
        await before.ended()
        copy = self._ssd.find(source.record, packed=pack)
        return Imported(copy, ()) if copy else None

    def _record(self, copy: SsdCopy | DramCopy, record: SourceRecord) -> None:
        if isinstance(copy, SsdCopy):
            self._ssd.record_source(copy, record)
        else:
            copy.checkpoint.sources.append(record)

    async def _bring(
        self,
        source: FoundSource,
        tier: Tier,
        pack: bool,
        load: Load[Imported],
        peers: Peers | None,
    ) -> Imported:
        files = await self._sources.files(source)
        if not pack and (copy := await self._try_to_adopt(source, files)):
            return Imported(copy, ())
        plan = await self._threads.run(partial(plan_import, files, source.record.dtype))
        load.report(0, plan.files.size_bytes)
        known = self._ssd.copies.get(plan.packed.digest) if plan.packed else None
        if known and not (pack and known.in_place):  # another source has led to it before
            return Imported(known, (Step(LoadPhase.IMPORT, self._clock.now(), 0.0, 0),))
        with ExitStack() as room:
            chunks = self._reserve_chunks(plan, tier, room)
            return await self._transfer(_Job(source.record, plan, chunks, load, peers))

    async def _transfer(self, job: _Job) -> Imported:
        """Onto SSD, and into the pool on the way; into the pool alone if it cannot be kept."""
        began = self._clock.now()
        keep, required = partial(self._keep, job), job.chunks is None
        copy = await self._if_possible(job.plan.disk_bytes, keep, required=required)
        if copy is not None:
            return Imported(copy, self._steps(began, job, copy.manifest))
        if job.chunks is None:
            raise NoCapacity(self._ssd.problem)
        dram = await self._bring_to_pool(job, job.chunks)
        return Imported(dram, self._steps(began, job, dram.checkpoint.manifest))

    async def _if_possible(
        self, size: int, work: Callable[[], Coroutine[Any, Any, SsdCopy]], *, required: bool = False
    ) -> SsdCopy | None:
        """What `work` leaves on SSD; None if the disk does not take its `size` bytes.

        Without room in the tier's budget it is None as well, unless the copy is `required`.
        """
        check = partial(has_room, self._ssd.directory, size)
        if self._ssd.problem and not await self._threads.run(check):
            return None
        try:
            copy = await work()
        except OSError as error:
            if not await self._threads.run(partial(is_refusal, error, self._ssd.directory)):
                raise
            self._ssd.refused(error)
            return None
        except (ModelTooLarge, NoCapacity) as error:
            if required:
                raise
            _log.warning("node.not_kept", problem=error.message)
            return None
        self._ssd.problem = ""
        return copy

    async def _keep(self, job: _Job) -> SsdCopy:
        with ExitStack() as room:
            written = room.enter_context(self._ssd.half_written(job.record))
            await self._reserve_disk(job.plan.disk_bytes, room)
            manifest = await self._write(job, written)
            return self._land(written, manifest, job.chunks)

    async def _bring_to_pool(self, job: _Job, chunks: Chunks) -> DramCopy:
        """Into the pool alone, the small files into a directory that is not the tier's."""
        directory = await self._threads.run(self._small_files.make)
        manifest = await self._write(job, directory, keep=False)
        return self._dram.land(Checkpoint(manifest, directory), chunks)

    async def _try_to_adopt(self, source: FoundSource, files: SourceFiles) -> SsdCopy | None:
        """A checkpoint that can be read where it lies, made known."""
        chunk_bytes = self._dram.pool.chunk_bytes
        local = isinstance(source.place, LocalSource)
        if not local or not can_stay(files, source.record, chunk_bytes):
            return None
        size = await self._threads.run(lambda: sum(path.stat().st_size for path in files.files))
        return await self._if_possible(size, partial(self._adopt, files, source.record, size))

    async def _adopt(self, files: SourceFiles, record: SourceRecord, size: int) -> SsdCopy:
        place = place_of(files)
        if files.fingerprint != record.fingerprint:
            raise corrupt(files.directory, "was changed while it was looked at; try again")
        describing = partial(describe, files, self._dram.pool.chunk_bytes)
        manifest = await self._threads.run(describing)
        written = self._ssd.temporary()
        with ExitStack() as room:
            await self._reserve_disk(size, room)
            await self._threads.run(partial(keep, files, manifest, written))
            return self._ssd.land(written, manifest, place)

    def _reserve_chunks(self, plan: ImportPlan, tier: Tier, room: ExitStack) -> Chunks | None:
        if tier is not Tier.DRAM:
            return None
        counts = plan.layout.chunk_counts(self._dram.pool.chunk_bytes)
        return room.enter_context(self._dram.reserved(counts))

    async def _reserve_disk(self, size: int, room: ExitStack) -> None:
        """Returns once what had to go is gone from the disk; it leaves the pool as well."""
        victims = room.enter_context(self._ssd.reserved(size))
        for digest in victims:
            self._ssd.detach(digest)
            self._dram.evict(digest)
        await self._threads.run(partial(delete_all, self._ssd.take_removed()))

    async def _write(self, job: _Job, written: Path, *, keep: bool = True) -> Manifest:
        load, chunks = job.load, job.chunks
        work = partial(
            import_checkpoint,
            job.plan,
            written,
            chunk_bytes=self._dram.pool.chunk_bytes,
            progress=load.reporter(),
            cancelled=lambda: load.abandoned or self._threads.closing.is_set(),
            memory=self._dram.memory(chunks) if chunks is not None else None,
            workers=self._workers,
            resume=True,
            keep=keep,
            urgency=lambda: load.priority,
            exchange=await self._share(job),
        )
        return await self._threads.run(work)

    async def _share(self, job: _Job) -> Exchange | None:
        """What has an import's chunks come from other nodes, and go to them."""
        if before := self.exchanges.pop(job.record, None):
            await asyncio.to_thread(before.close)
        is_local = urlsplit(job.record.url).scheme == "file"
        if self._network is None or (is_local and not job.peers):
            return None
        chunk_bytes = self._dram.pool.chunk_bytes
        exchange = Exchange(job.record, job.plan, chunk_bytes, self._network, self._clock)
        self.exchanges[job.record] = exchange
        if job.peers:
            exchange.add(job.peers)
            await self._threads.run(exchange.learn_digests)
        return exchange

    def _land(self, written: Path, manifest: Manifest, chunks: Chunks | None) -> SsdCopy:
        copy = self._ssd.land(written, manifest)
        if chunks is not None:
            self._dram.land(copy, chunks)
        return copy

    def _steps(self, began: float, job: _Job, manifest: Manifest) -> tuple[Step, ...]:
        exchange = self.exchanges.get(job.record)
        fetched = exchange.fetched_bytes if exchange else 0
        return steps_of(manifest, fetched, began, self._clock.now(), self._speeds)

    def close(self) -> None:
        """Ends the threads that fill chunks, and gives up what was not kept.

        No import may be under way, and nothing may use the tiers any more.
        """
        self._workers.close()
        for digest, copy in list(self._dram.copies.items()):
            if self._small_files.has(copy.checkpoint.directory):
                self._dram.evict(digest)
        self._small_files.close()


def _settle(directory: Path, removed: Sequence[Path]) -> None:
    """Makes the rename durable; deletes what was not needed, its content being there already."""
    delete_all(removed)
    flush_directory(directory)
