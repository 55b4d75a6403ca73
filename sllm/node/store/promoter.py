"""One caller's promotion: joins or begins the transfers it needs, and leases what they leave."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial

from sllm.checkpoint.format.manifest import corrupt
from sllm.checkpoint.remote.snapshot import Snapshot
from sllm.errors import ModelTooLarge, NoCapacity
from sllm.node.store.healing import healed
from sllm.node.store.lease import Lease
from sllm.node.tiers.checkpoints import Checkpoint, SourceRecord
from sllm.node.tiers.dram import Chunks, DramCopy, DramTier
from sllm.node.tiers.ledger import Holding
from sllm.node.tiers.ssd import SsdCopy, SsdTier
from sllm.node.tiers.types import Tier
from sllm.node.transfers.imports import Imports
from sllm.node.transfers.loads import Load, Result, Tell
from sllm.node.transfers.reads import Early, Reads
from sllm.node.transfers.sources import FoundSource
from sllm.node.transfers.work import Step, Wish


@dataclass(frozen=True, slots=True)
class _Trip:
    """What one caller wants, what was done for it so far, and what it holds."""

    source: FoundSource
    wish: Wish
    tell: Tell
    held: ExitStack
    steps: list[Step] = field(default_factory=list)


class Promoter:
    """Brings checkpoints up. Belongs to the event loop."""

    def __init__(
        self,
        ssd: SsdTier,
        dram: DramTier,
        imports: Imports,
        reads: Reads,
        changed: Callable[[], None],
    ) -> None:
        self._ssd = ssd
        self._dram = dram
        self._imports = imports
        self._reads = reads
        self._changed = changed

    async def bring_up(self, source: FoundSource, wish: Wish, tell: Tell) -> Lease:
        """A lease on the checkpoint, once it is where it is wished for.

        A caller that is cancelled gives its wish up: loads that nobody else waits for end at once.

        Raises:
            SllmError: as `TierStore.promote` says.
        """
        from_tier = self._held_on(source.record)
        with ExitStack() as held:
            trip = _Trip(source, wish, tell, held)
            checkpoint, chunks = await self._reach(trip)
            steps = tuple(trip.steps)
            return Lease(checkpoint, source.record, chunks, from_tier, steps, held.pop_all())

    def _held_on(self, record: SourceRecord) -> Tier:
        if self._dram.find(record) is not None:
            return Tier.DRAM
        return Tier.REMOTE if self._ssd.find(record) is None else Tier.SSD

    async def _reach(self, trip: _Trip) -> tuple[Checkpoint, Chunks]:
        """Takes what is in the pool alone from there; brings all else to SSD first."""
        dram = self._dram.find(trip.source.record) if trip.wish.tier is Tier.DRAM else None
        if dram is not None and dram.checkpoint.manifest.digest not in self._ssd.copies:
            return dram.checkpoint, self._take(trip, dram)
        copy = await self._reach_ssd(trip)
        if isinstance(copy, DramCopy):
            return copy.checkpoint, copy.chunks
        return await self._reach_dram(trip, copy) if trip.wish.tier is Tier.DRAM else (copy, ())

    async def _reach_ssd(self, trip: _Trip) -> SsdCopy | DramCopy:
        """A copy on SSD; of what its disk refused, the one in the pool, if that is wanted."""
        known = self._ssd.find(trip.source.record, packed=trip.wish.pack)
        copy = known or await self._import(trip)
        if known is not None:  # an import has leased its copy for all who have joined it
            known.holding.leases += 1
            self._ssd.touch(known)
        self._hold(copy.holding, trip)
        if isinstance(copy, DramCopy) and trip.wish.tier is Tier.SSD:
            raise NoCapacity(self._ssd.problem or "the SSD tier has no room for the checkpoint")
        return copy

    async def _import(self, trip: _Trip) -> SsdCopy | DramCopy:
        source, wish = trip.source, trip.wish
        if source.record.form and not isinstance(source.contents, Snapshot):
            raise corrupt(source.record.url, "was made ready, and that is gone: nobody imports it")
        begin = partial(
            self._imports.load,
            source,
            wish.tier,
            wish.priority,
            pack=wish.pack,
            peers=wish.peers,
        )
        try:
            imported = await self._join(begin, trip)
        except (ModelTooLarge, NoCapacity):
            if wish.tier is Tier.SSD:
                raise
            # It may have been begun for SSD alone; what has no room there may have it in the pool.
            imported = await self._join(begin, trip)
        trip.steps.extend(imported.steps)
        return imported.copy

    async def _reach_dram(self, trip: _Trip, copy: SsdCopy) -> tuple[Checkpoint, Chunks]:
        return await healed(
            partial(self._read, trip, copy),
            again=partial(self._reach_anew, trip),
            is_replaceable=lambda: copy.replaceable,
        )

    async def _reach_anew(self, trip: _Trip) -> tuple[Checkpoint, Chunks]:
        copy = await self._reach_ssd(trip)
        if isinstance(copy, DramCopy):
            return copy.checkpoint, copy.chunks
        return await self._read(trip, copy)

    async def _read(self, trip: _Trip, copy: SsdCopy) -> tuple[Checkpoint, Chunks]:
        dram = self._dram.copies.get(copy.manifest.digest)
        if dram is not None:
            return copy, self._take(trip, dram)
        wish = trip.wish
        early = Early(wish.early, trip.source.record) if wish.early else None
        read = await self._join(
            lambda: self._reads.load(copy, wish.priority, wish.sink, early), trip
        )
        trip.steps.append(read.step)
        self._hold(read.copy.holding, trip)
        return copy, read.copy.chunks

    async def _join(self, find: Callable[[], Load[Result]], trip: _Trip) -> Result:
        """The result of a load; one that others have given up ends before it begins anew."""
        while (load := find()).abandoned:
            await load.ended()
        return await load.join(trip.tell, trip.wish.priority)

    def _take(self, trip: _Trip, dram: DramCopy) -> Chunks:
        dram.holding.leases += 1
        self._dram.ledger.touch(dram.checkpoint.manifest.digest)
        self._hold(dram.holding, trip)
        return dram.chunks

    def _hold(self, holding: Holding, trip: _Trip) -> None:
        """Notes that the trip has a lease on `holding`, which ends with it."""
        trip.held.callback(self._let_go, holding)
        self._changed()

    def _let_go(self, holding: Holding) -> None:
        holding.leases -= 1
        self._changed()
