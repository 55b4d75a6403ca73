"""From SSD into the pool."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial

import structlog

from sllm.checkpoint.files.memory import ChunkMemory
from sllm.checkpoint.reading.chunk_reader import ChunkRead, open_reads
from sllm.clock import Clock
from sllm.errors import Cancelled, CheckpointCorrupt, ShuttingDown
from sllm.node.tiers import metrics
from sllm.node.tiers.checkpoints import SourceRecord
from sllm.node.tiers.dram import Chunks, DramCopy, DramTier
from sllm.node.tiers.first_use import ChunkOrder, chunk_order
from sllm.node.tiers.in_place import remember, with_digests
from sllm.node.tiers.ssd import SsdCopy, SsdTier
from sllm.node.tiers.types import Tier
from sllm.node.transfers.loads import Load, Threads
from sllm.node.transfers.read_queue import ReadJob, ReadQueue
from sllm.node.transfers.speeds import Speed
from sllm.node.transfers.window import WINDOW_CHUNKS, Window
from sllm.node.transfers.work import Arrival, EarlyUser, LoadPhase, Priority, Sink, Step

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Early:
    """Who uses a read's chunks before its end."""

    user: EarlyUser
    record: SourceRecord
    """The source that leads to the checkpoint."""


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
        threads: Threads,
        speed: Speed,
        clock: Clock,
        read_threads: int,
        changed: Callable[[], None],
    ) -> None:
        self.loads: dict[str, Load[ReadIn]] = {}
        """Under way, by digest."""
        self._ssd = ssd
        self._dram = dram
        self._threads = threads
        self._speed = speed
        self._clock = clock
        self._queue = ReadQueue(read_threads, clock)
        self._changed = changed

    @property
    def in_flight_bytes(self) -> int:
        """Bytes of the chunks that are being read."""
        return self._queue.in_flight_bytes

    def load(
        self,
        copy: SsdCopy,
        priority: Priority,
        sink: Sink | None = None,
        early: Early | None = None,
    ) -> Load[ReadIn]:
        """The read of a copy that is under way, or a new one. The copy must be leased.

        `sink` and `early` get the chunks of a new one as they arrive.
        """
        digest = copy.manifest.digest
        load = self.loads.get(digest)
        if load is None:
            load = self.loads[digest] = Load(LoadPhase.READ, Tier.SSD, self._changed, priority)
            load.report(0, copy.manifest.size_bytes)
            load.begin(self._run(copy, load, sink, early))
        return load

    async def _run(
        self, copy: SsdCopy, load: Load[ReadIn], sink: Sink | None, early: Early | None
    ) -> ReadIn:
        try:
            with self._accounted(copy):
                return await self._read(copy, load, sink, early)
        finally:
            del self.loads[copy.manifest.digest]
            self._changed()

    @contextmanager
    def _accounted(self, copy: SsdCopy) -> Iterator[None]:
        """Sets a corrupt copy aside; tells the node's end from that of a caller."""
        try:
            yield
        except CheckpointCorrupt as error:
            known = self._ssd.copies.get(copy.manifest.digest)
            if copy.replaceable and known is copy:  # others may have found it out before
                self._ssd.quarantine(copy, error)
            raise
        except Cancelled as error:
            if self._threads.closing.is_set():
                raise ShuttingDown("the node went down during the load") from error
            raise

    async def _read(
        self, copy: SsdCopy, load: Load[ReadIn], sink: Sink | None, early: Early | None
    ) -> ReadIn:
        manifest, pool = copy.manifest, self._dram.pool
        with (
            ExitStack() as files,
            self._dram.reserved([entry.chunk_count for entry in manifest.partitions]) as chunks,
            pool.undisturbed(),
        ):
            order = chunk_order(manifest, copy.first_use)
            if early is not None:
                order = early.user.order(manifest, order)
            async with _used_early(early, copy, chunks, order) as user:
                return await self._read_into(chunks, order, copy, load, sink, user, files)

    async def _read_into(
        self,
        chunks: Chunks,
        order: ChunkOrder,
        copy: SsdCopy,
        load: Load[ReadIn],
        sink: Sink | None,
        user: EarlyUser | None,
        files: ExitStack,
    ) -> ReadIn:
        reads = await self._open(copy, self._dram.memory(chunks), files)
        job = ReadJob(
            reads,
            priority=lambda: load.priority,
            cancelled=lambda: load.abandoned or self._threads.closing.is_set(),
            advance=load.advance,
            landed=_hand_on(sink, user, chunks),
            order=order.chunks,
        )
        try:
            await self._queue.read(job)
        finally:
            # However the read ends, its chunks are free only when nobody copies from them.
            if sink:
                await sink.settle()
        await self._check(copy, job)
        dram = self._dram.land(copy, chunks)
        load.land(dram.holding)
        if user is not None and dram.chunks is not chunks:
            await user.let_go(Cancelled("the same weights have come from elsewhere meanwhile"))
        return ReadIn(dram, self._step(job, copy))

    async def pass_through(self, copy: SsdCopy, priority: Priority, sink: Sink) -> Step:
        """Reads a leased copy into a few chunks of the pool, each free again behind the sink.

        A caller that is cancelled ends it.

        Raises:
            NoCapacity: not even a few chunks are free, or can be made so.
            CheckpointCorrupt: as `ReadQueue.read`.
            ShuttingDown: the node is going down.
        """
        count = min(WINDOW_CHUNKS, self._dram.pool.chunk_count)
        with (
            ExitStack() as files,
            self._accounted(copy),
            self._dram.reserved([count]) as (chunks,),
            self._dram.pool.undisturbed(),
        ):
            window = Window(self._dram, copy.manifest, chunks, sink, self._queue.wake)
            left = asyncio.Event()
            job = ReadJob(
                await self._open(copy, window.memory(), files),
                priority=lambda: priority,
                cancelled=lambda: left.is_set() or self._threads.closing.is_set(),
                advance=lambda _: None,
                landed=window.landed,
                take=window.take,
            )
            try:
                await self._read_or_leave(job, left)
            finally:
                await sink.settle()
            await self._check(copy, job)
        return self._step(job, copy)

    async def _read_or_leave(self, job: ReadJob, left: asyncio.Event) -> None:
        """Has a job read; a caller that is cancelled leaves once no chunk is being written."""
        reading = asyncio.ensure_future(self._queue.read(job))
        try:
            await asyncio.shield(reading)
        except asyncio.CancelledError:
            left.set()
            self._queue.wake()
            await asyncio.wait([reading])
            reading.exception()
            raise

    async def _open(self, copy: SsdCopy, memory: ChunkMemory, files: ExitStack) -> list[ChunkRead]:
        room = copy.in_place.room if copy.in_place else None
        opening = partial(open_reads, copy.weights, copy.manifest, memory, files, room=room)
        return await self._threads.run(opening)

    async def _check(self, copy: SsdCopy, job: ReadJob) -> None:
        """What was read in place must belong together; its digests are kept for later reads."""
        if copy.in_place is None:
            return
        await self._threads.run(copy.in_place.check_unchanged)
        if all(entry.digests for entry in copy.manifest.partitions):
            return
        found = iter(job.digests)
        digests = {
            entry.file: [next(found) for _ in range(entry.chunk_count)]
            for entry in copy.manifest.partitions
        }
        copy.manifest = with_digests(copy.manifest, digests)
        kept = partial(remember, copy.directory, copy.in_place, copy.manifest)
        await self._threads.run(kept)

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


@asynccontextmanager
async def _used_early(
    early: Early | None, copy: SsdCopy, chunks: Chunks, order: ChunkOrder
) -> AsyncIterator[EarlyUser | None]:
    """Who uses a read's chunks before its end. If it fails, they are free when nobody does.

    Nobody may before they are checked, which chunks without a known digest are only together.
    """
    is_checked = all(entry.digests for entry in copy.manifest.partitions)
    if early is None or not is_checked or len(order.at_once) == len(order.chunks):
        yield None
        return
    arrival = Arrival(copy.manifest, copy.directory, early.record, chunks, order.at_once)
    if not early.user.begin(arrival):
        yield None
        return
    try:
        yield early.user
    except BaseException as error:
        await early.user.let_go(error)
        raise


def _hand_on(sink: Sink | None, user: EarlyUser | None, chunks: Chunks) -> Callable[[int], None]:
    """Tells who takes chunks of them, a sink by their places in the pool."""
    places = [chunk for partition in chunks for chunk in partition]

    def landed(index: int) -> None:
        if sink is not None:
            sink.landed(index, places[index])
        if user is not None:
            user.landed(index)

    return landed
