"""From SSD into the pool."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import structlog

from sllm.checkpoint.chunk_reader import open_reads
from sllm.clock import Clock
from sllm.errors import Cancelled, CheckpointCorrupt, ShuttingDown
from sllm.node import metrics
from sllm.node.dram import Chunks, DramCopy, DramTier
from sllm.node.in_place import remember, with_digests
from sllm.node.links import Speed
from sllm.node.loads import Load, Movers
from sllm.node.read_queue import ReadJob, ReadQueue
from sllm.node.records import LoadPhase, Priority, Step, Tier
from sllm.node.ssd import SsdCopy, SsdTier

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class ReadIn:
    """What a read left in the pool."""

    copy: DramCopy
    """Leased once for everybody who joined the read."""
    step: Step


class Reads:
    """The reads of a node. Belongs to the event loop."""

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
        self._queue = ReadQueue(threads, clock)
        self._changed = changed

    @property
    def in_flight_bytes(self) -> int:
        """Bytes of the chunks that are being read."""
        return self._queue.in_flight_bytes

    def load(self, copy: SsdCopy, priority: Priority) -> Load[ReadIn]:
        """The read of a copy that is under way, or a new one. The copy must be leased."""
        digest = copy.manifest.digest
        load = self.loads.get(digest)
        if load is None:
            load = self.loads[digest] = Load(LoadPhase.READ, Tier.SSD, self._changed, priority)
            load.report(0, copy.manifest.size_bytes)
            load.begin(self._run(copy, load))
        return load

    async def _run(self, copy: SsdCopy, load: Load[ReadIn]) -> ReadIn:
        try:
            return await self._read(copy, load)
        except CheckpointCorrupt as error:
            if copy.replaceable:
                self._ssd.quarantine(copy, error)
            raise
        except Cancelled:
            if self._movers.closing.is_set():
                raise ShuttingDown("the node went down during the load") from None
            raise
        finally:
            del self.loads[copy.manifest.digest]
            self._changed()

    async def _read(self, copy: SsdCopy, load: Load[ReadIn]) -> ReadIn:
        manifest, pool = copy.manifest, self._dram.pool
        with (
            ExitStack() as files,
            self._dram.reserved([entry.chunk_count for entry in manifest.partitions]) as chunks,
            pool.undisturbed(),
        ):
            job = await self._open(copy, chunks, load, files)
            await self._queue.read(job)
            await self._check(copy, job)
            dram = self._dram.land(copy, chunks)
            load.land(dram.holding)
        return ReadIn(dram, self._step(job, copy))

    async def _open(
        self, copy: SsdCopy, chunks: Chunks, load: Load[ReadIn], files: ExitStack
    ) -> ReadJob:
        memory = self._dram.memory(chunks)
        reads = await self._movers.run(
            partial(open_reads, copy.weights, copy.manifest, memory, files)
        )
        return ReadJob(
            reads,
            priority=lambda: load.priority,
            cancelled=lambda: load.abandoned or self._movers.closing.is_set(),
            advance=load.advance,
        )

    async def _check(self, copy: SsdCopy, job: ReadJob) -> None:
        """What was read in place must belong together; its digests are kept for later reads."""
        if copy.in_place is None:
            return
        await self._movers.run(copy.in_place.check_unchanged)
        if all(entry.digests for entry in copy.manifest.partitions):
            return
        found = iter(job.digests)
        digests = {
            entry.file: [next(found) for _ in range(entry.chunk_count)]
            for entry in copy.manifest.partitions
        }
        copy.manifest = with_digests(copy.manifest, digests)
        kept = partial(remember, copy.directory, copy.in_place, copy.manifest)
        await self._movers.run(kept)

    def _step(self, job: ReadJob, copy: SsdCopy) -> Step:
        now = self._clock.now()
        began = now if job.began is None else job.began
        size = copy.manifest.size_bytes
        self._speed.observe(size, began, now)
        metrics.record_load("read", size, now - began)
        _log.info("node.read_into_pool", digest=copy.manifest.digest, seconds=round(now - began, 3))
        return Step(LoadPhase.READ, began, now - began, size)

    def close(self) -> None:
        """Ends the threads. No read may be under way."""
        self._queue.close()
