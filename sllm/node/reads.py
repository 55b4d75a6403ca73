"""From SSD into the pool."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import structlog

from sllm.checkpoint.chunk_reader import read_checkpoint
from sllm.clock import Clock
from sllm.errors import CheckpointCorrupt
from sllm.node import metrics
from sllm.node.dram import Chunks, DramCopy, DramTier
from sllm.node.links import Speed
from sllm.node.loads import Load, Movers
from sllm.node.records import LoadPhase, Step, Tier
from sllm.node.ssd import SsdCopy, SsdTier, delete

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class ReadIn:
    """What a read left in the pool."""

    copy: DramCopy
    """Leased once for everybody who joined the read."""
    step: Step


class Reads:
    """The reads of a node. Belongs to the event loop.

    Their chunks are read by a few threads of their own, first come first served: the disk is
    the bottleneck, and sharing it between two checkpoints would only delay the first.
    """

    def __init__(
        self,
        ssd: SsdTier,
        dram: DramTier,
        movers: Movers,
        speed: Speed,
        clock: Clock,
        threads: int,
        changed: Callable[[], None],
    ) -> None:
        self.loads: dict[str, Load[ReadIn]] = {}
        """Under way, by digest."""
        self._ssd = ssd
        self._dram = dram
        self._movers = movers
        self._speed = speed
        self._clock = clock
        self._threads = ThreadPoolExecutor(threads, "chunk-read")
        self._changed = changed

    def load(self, copy: SsdCopy) -> Load[ReadIn]:
        """The read of a copy that is under way, or a new one. The copy must be leased."""
        digest = copy.manifest.digest
        load = self.loads.get(digest)
        if load is None:
            load = self.loads[digest] = Load(LoadPhase.READ, Tier.SSD, self._changed)
            load.report(0, copy.manifest.size_bytes)
            load.begin(self._run(copy, load))
        return load

    async def _run(self, copy: SsdCopy, load: Load[ReadIn]) -> ReadIn:
        try:
            return await self._read(copy, load)
        except CheckpointCorrupt:
            await self._movers.run(partial(delete, self._drop(copy)))
            raise

    async def _read(self, copy: SsdCopy, load: Load[ReadIn]) -> ReadIn:
        manifest = copy.manifest
        try:
            with self._dram.reserved(
                [len(entry.digests) for entry in manifest.partitions]
            ) as chunks:
                began = await self._fill(copy, chunks, load)
                dram = self._dram.land(copy, chunks)
            dram.holding.leases += load.joined
        finally:
            del self.loads[manifest.digest]
            self._changed()
        return ReadIn(dram, self._step(began, copy))

    async def _fill(self, copy: SsdCopy, chunks: Chunks, load: Load[ReadIn]) -> float:
        return await self._movers.run(
            partial(
                read_checkpoint,
                copy.directory,
                copy.manifest,
                self._dram.memory(chunks),
                threads=self._threads,
                clock=self._clock,
                progress=load.reporter(),
                cancelled=self._movers.closing.is_set,
            )
        )

    def _drop(self, copy: SsdCopy) -> Path:
        """Forgets a corrupt copy, leased or not: nothing of it is to be believed."""
        self._ssd.ledger.remove(copy.manifest.digest)
        return self._ssd.detach(copy.manifest.digest)

    def _step(self, began: float, copy: SsdCopy) -> Step:
        seconds = self._clock.now() - began
        size = copy.manifest.size_bytes
        self._speed.observe(size, seconds)
        metrics.record_load("read", size, seconds)
        _log.info("node.read_into_pool", digest=copy.manifest.digest, seconds=round(seconds, 3))
        return Step(LoadPhase.READ, began, seconds, size)

    def close(self) -> None:
        """Ends the threads. No read may be under way."""
        self._threads.shutdown()
