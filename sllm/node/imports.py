"""From a source to SSD; into the pool in the same pass, if the checkpoint is wanted there.

In one pass means: each chunk is filled where it will stay in the pool, and goes to SSD from there.
"""

import errno
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import structlog

from sllm.checkpoint.direct_io import flush_directory
from sllm.checkpoint.import_plan import ImportPlan, plan_import
from sllm.checkpoint.importer import import_checkpoint
from sllm.checkpoint.manifest import Manifest
from sllm.checkpoint.workers import ChunkWorkers
from sllm.clock import Clock
from sllm.errors import NoCapacity
from sllm.node import metrics
from sllm.node.checkpoints import SourceRecord
from sllm.node.dram import Chunks, DramTier
from sllm.node.links import Speed
from sllm.node.loads import Load, Movers
from sllm.node.records import LoadPhase, Step, Tier
from sllm.node.sources import FoundSource, Sources
from sllm.node.ssd import SsdCopy, SsdTier, delete

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import left on SSD."""

    copy: SsdCopy
    """Leased once for everybody who joined the import."""
    step: Step


class Imports:
    """The imports of a node. Belongs to the event loop."""

    def __init__(
        self,
        ssd: SsdTier,
        dram: DramTier,
        sources: Sources,
        movers: Movers,
        speed: Speed,
        clock: Clock,
        threads: int,
        changed: Callable[[], None],
    ) -> None:
        self.loads: dict[SourceRecord, Load[Imported]] = {}
        """Under way."""
        self._ssd = ssd
        self._dram = dram
        self._sources = sources
        self._movers = movers
        self._speed = speed
        self._clock = clock
        self._workers = ChunkWorkers(dram.pool.chunk_bytes, threads)
        self._changed = changed

    def load(self, source: FoundSource, tier: Tier) -> Load[Imported]:
        """The import of a source that is under way, or a new one.

        Args:
            source: as it was found; imports of the same state of a source are the same.
            tier: DRAM to fill chunks of the pool on the way.
        """
        load = self.loads.get(source.record)
        if load is None:
            load = Load(LoadPhase.IMPORT, Tier.REMOTE, self._changed)
            self.loads[source.record] = load
            load.begin(self._run(source, tier, load))
        return load

    async def _run(self, source: FoundSource, tier: Tier, load: Load[Imported]) -> Imported:
        try:
            copy, step = await self._bring(source, tier, load)
            copy.holding.leases += load.joined
            self._ssd.record_source(copy, source.record)
        finally:
            del self.loads[source.record]
            self._changed()
        await self._movers.run(partial(_settle, self._ssd.directory, self._ssd.take_removed()))
        return Imported(copy, step)

    async def _bring(
        self, source: FoundSource, tier: Tier, load: Load[Imported]
    ) -> tuple[SsdCopy, Step]:
        files = await self._sources.files(source)
        plan = await self._movers.run(partial(plan_import, files, source.record.dtype))
        load.report(0, plan.files.size_bytes)
        began = self._clock.now()
        if plan.packed and (known := self._ssd.copies.get(plan.packed.digest)):
            return known, Step(LoadPhase.IMPORT, began, duration=0.0, size_bytes=0)
        with ExitStack() as room:
            chunks = self._reserve_chunks(plan, tier, room)
            written = room.enter_context(self._ssd.half_written(source.record))
            await self._reserve_disk(plan, room)
            began = self._clock.now()
            manifest = await self._write(plan, written, chunks, load)
            copy = self._land(written, manifest, chunks)
        return copy, self._step(began, manifest)

    def _reserve_chunks(self, plan: ImportPlan, tier: Tier, room: ExitStack) -> Chunks | None:
        if tier is not Tier.DRAM:
            return None
        counts = plan.layout.chunk_counts(self._dram.pool.chunk_bytes)
        return room.enter_context(self._dram.reserved(counts))

    async def _reserve_disk(self, plan: ImportPlan, room: ExitStack) -> None:
        """Returns once what had to go is gone from the disk; it leaves the pool as well."""
        victims = room.enter_context(self._ssd.reserved(plan.disk_bytes))
        removed = [self._ssd.detach(digest) for digest in victims]
        for digest in victims:
            self._dram.evict(digest)
        for path in removed:
            await self._movers.run(partial(delete, path))

    async def _write(
        self, plan: ImportPlan, written: Path, chunks: Chunks | None, load: Load[Imported]
    ) -> Manifest:
        work = partial(
            import_checkpoint,
            plan,
            written,
            chunk_bytes=self._dram.pool.chunk_bytes,
            progress=load.reporter(),
            cancelled=self._movers.closing.is_set,
            memory=self._dram.memory(chunks) if chunks is not None else None,
            workers=self._workers,
            resume=True,
        )
        try:
            return await self._movers.run(work)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise NoCapacity(
                f"the disk of {self._ssd.directory} is full, though the tier's budget is not: "
                "free some of it, or lower the budget"
            ) from error

    def _land(self, written: Path, manifest: Manifest, chunks: Chunks | None) -> SsdCopy:
        copy = self._ssd.land(written, manifest)
        if chunks is not None:
            self._dram.land(copy, chunks)
        return copy

    def _step(self, began: float, manifest: Manifest) -> Step:
        seconds = self._clock.now() - began
        self._speed.observe(manifest.size_bytes, seconds)
        metrics.record_load("import", manifest.size_bytes, seconds)
        _log.info("node.imported", digest=manifest.digest, seconds=round(seconds, 3))
        return Step(LoadPhase.IMPORT, began, seconds, manifest.size_bytes)

    def close(self) -> None:
        """Ends the threads that fill chunks. No import may be under way."""
        self._workers.close()


def _settle(directory: Path, removed: Sequence[Path]) -> None:
    """Makes the rename durable; deletes what was not needed, its content being there already."""
    for path in removed:
        delete(path)
    flush_directory(directory)
