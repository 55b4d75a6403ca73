"""From a source to SSD; into the pool in the same pass, if the checkpoint is wanted there.

In one pass: each chunk is filled at its place in the pool, and written to SSD from there.
"""

from collections.abc import Callable, Coroutine, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from sllm.checkpoint.files.direct_io import flush_directory
from sllm.checkpoint.format.manifest import Manifest, corrupt
from sllm.checkpoint.importing.chunk_workers import ChunkWorkers
from sllm.checkpoint.importing.import_plan import ImportPlan, plan_import
from sllm.checkpoint.importing.importer import import_checkpoint
from sllm.checkpoint.sources.sources import LocalSource, SourceFiles
from sllm.clock import Clock
from sllm.errors import ModelTooLarge, NoCapacity
from sllm.node.tiers import metrics
from sllm.node.tiers.checkpoints import Checkpoint, SourceRecord
from sllm.node.tiers.disk_refusals import SmallFiles, has_room, is_refusal
from sllm.node.tiers.dram import Chunks, DramCopy, DramTier
from sllm.node.tiers.in_place import InPlace, can_stay, describe, keep
from sllm.node.tiers.ssd import SsdCopy, SsdTier
from sllm.node.tiers.ssd_files import delete_all
from sllm.node.tiers.types import Tier
from sllm.node.transfers.loads import Load, Threads
from sllm.node.transfers.sources import FoundSource, Sources
from sllm.node.transfers.speeds import Speed
from sllm.node.transfers.work import LoadPhase, Priority, Step

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import has left."""

    copy: SsdCopy | DramCopy
    """On SSD; in the pool if the disk could not take it. Leased once for everybody who joined."""
    steps: tuple[Step, ...]
    """Empty if nothing had to move."""


class Imports:
    """The imports of a node. Belongs to the event loop."""

    def __init__(
        self,
        ssd: SsdTier,
        dram: DramTier,
        sources: Sources,
        threads: Threads,
        speed: Speed,
        clock: Clock,
        fetch_threads: int,
        changed: Callable[[], None],
    ) -> None:
        self.loads: dict[tuple[SourceRecord, bool], Load[Imported]] = {}
        """Under way, by source and by whether it is to be packed."""
        self._ssd = ssd
        self._dram = dram
        self._sources = sources
        self._threads = threads
        self._speed = speed
        self._clock = clock
        self._small_files = SmallFiles()
        self._workers = ChunkWorkers(dram.pool.chunk_bytes, fetch_threads)
        self._changed = changed

    def load(
        self, source: FoundSource, tier: Tier, priority: Priority, *, pack: bool
    ) -> Load[Imported]:
        """The import of a source that is under way, or a new one.

        Args:
            source: as it was found; imports of the same state of a source are the same.
            tier: DRAM to fill chunks of the pool on the way.
            priority: whose chunks go first; joining may raise it.
            pack: convert it although it could be read where it lies.
        """
        key = source.record, pack
        load = self.loads.get(key)
        if load is None:
            load = self.loads[key] = Load(LoadPhase.IMPORT, Tier.REMOTE, self._changed, priority)
            load.begin(self._run(source, tier, pack, load))
        return load

    async def _run(
        self, source: FoundSource, tier: Tier, pack: bool, load: Load[Imported]
    ) -> Imported:
        try:
            imported = await self._bring(source, tier, pack, load)
            load.land(imported.copy.holding)
            self._record(imported.copy, source.record)
        finally:
            del self.loads[source.record, pack]
            self._changed()
        if isinstance(imported.copy, SsdCopy):
            removed = self._ssd.take_removed()
            await self._threads.run(partial(_settle, self._ssd.directory, removed))
        return imported

    def _record(self, copy: SsdCopy | DramCopy, record: SourceRecord) -> None:
        if isinstance(copy, SsdCopy):
            self._ssd.record_source(copy, record)
        else:
            copy.checkpoint.sources.append(record)

    async def _bring(
        self, source: FoundSource, tier: Tier, pack: bool, load: Load[Imported]
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
            return await self._transfer(source.record, plan, chunks, load)

    async def _transfer(
        self, record: SourceRecord, plan: ImportPlan, chunks: Chunks | None, load: Load[Imported]
    ) -> Imported:
        """Onto SSD, and into the pool on the way; into the pool alone if it cannot be kept."""
        began = self._clock.now()
        keep = partial(self._keep, record, plan, chunks, load)
        copy = await self._if_possible(plan.disk_bytes, keep, required=chunks is None)
        if copy is not None:
            return Imported(copy, (self._step(began, copy.manifest),))
        if chunks is None:
            raise NoCapacity(self._ssd.problem)
        dram = await self._bring_to_pool(plan, chunks, load)
        return Imported(dram, (self._step(began, dram.checkpoint.manifest),))

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

    async def _keep(
        self, record: SourceRecord, plan: ImportPlan, chunks: Chunks | None, load: Load[Imported]
    ) -> SsdCopy:
        with ExitStack() as room:
            written = room.enter_context(self._ssd.half_written(record))
            await self._reserve_disk(plan.disk_bytes, room)
            manifest = await self._write(plan, written, chunks, load)
            return self._land(written, manifest, chunks)

    async def _bring_to_pool(
        self, plan: ImportPlan, chunks: Chunks, load: Load[Imported]
    ) -> DramCopy:
        """Into the pool alone, the small files into a directory that is not the tier's."""
        directory = await self._threads.run(self._small_files.make)
        manifest = await self._write(plan, directory, chunks, load, keep=False)
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
        place = InPlace(files.directory, files.fingerprint, packed=files.packed is not None)
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

    async def _write(
        self,
        plan: ImportPlan,
        written: Path,
        chunks: Chunks | None,
        load: Load[Imported],
        *,
        keep: bool = True,
    ) -> Manifest:
        work = partial(
            import_checkpoint,
            plan,
            written,
            chunk_bytes=self._dram.pool.chunk_bytes,
            progress=load.reporter(),
            cancelled=lambda: load.abandoned or self._threads.closing.is_set(),
            memory=self._dram.memory(chunks) if chunks is not None else None,
            workers=self._workers,
            resume=True,
            keep=keep,
            urgency=lambda: load.priority,
        )
        return await self._threads.run(work)

    def _land(self, written: Path, manifest: Manifest, chunks: Chunks | None) -> SsdCopy:
        copy = self._ssd.land(written, manifest)
        if chunks is not None:
            self._dram.land(copy, chunks)
        return copy

    def _step(self, began: float, manifest: Manifest) -> Step:
        ended = self._clock.now()
        seconds = ended - began
        self._speed.observe(manifest.size_bytes, began, ended)
        metrics.record_load("import", manifest.size_bytes, seconds)
        _log.info("node.imported", digest=manifest.digest, seconds=round(seconds, 3))
        return Step(LoadPhase.IMPORT, began, seconds, manifest.size_bytes)

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
