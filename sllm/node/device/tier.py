"""The device tier of one CUDA device: which checkpoints are on it, and how they get there."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import structlog

from sllm.checkpoint.manifest import corrupt
from sllm.clock import Clock
from sllm.errors import CheckpointLeased, ModelTooLarge, NoCapacity, SllmError
from sllm.node import metrics
from sllm.node.checkpoints import SourceRecord
from sllm.node.device.ascent import Ascent, PinnedPool
from sllm.node.device.copy_thread import CopyJob
from sllm.node.device.memory import Allocation, DeviceMemory, uninterrupted
from sllm.node.device.placing import Layout, lay_out
from sllm.node.device.records import OnDevice, Placed, WeightsWish
from sllm.node.lease import Lease
from sllm.node.ledger import Holding, Ledger
from sllm.node.loads import Load, Tell
from sllm.node.records import Copy, LoadPhase, Priority, Progress, Step, Tier
from sllm.node.tiers import TierStore

Result = TypeVar("Result")

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, eq=False)
class DeviceCopy:
    """A checkpoint on the device."""

    below: Lease
    """On the tier that holds its small files, and its weights' other copy if there is one."""
    layout: Layout
    memory: Allocation
    holding: Holding
    steps: tuple[Step, ...]
    """Transfers that brought it here, in their order."""


class CudaTier:
    """See `Seat.bring_up`. Belongs to the event loop."""

    def __init__(
        self,
        store: TierStore,
        pool: PinnedPool,
        memory: DeviceMemory,
        capacity_bytes: int,
        clock: Clock,
        changed: Callable[[], None],
    ) -> None:
        """Begins empty.

        Args:
            store: the tiers below.
            pool: its pool, pinned.
            memory: the device's.
            capacity_bytes: of it, for weights.
            clock: measures.
            changed: called after every change of contents, leases or loads.
        """
        self.memory = memory
        self.ledger = Ledger(Tier.DEVICE, capacity_bytes, clock)
        self.copies: dict[str, DeviceCopy] = {}
        """By digest."""
        self.loads: dict[str, Load[DeviceCopy]] = {}
        """Under way, by digest."""
        self._store = store
        self._pool = pool
        self._clock = clock
        self._changed = changed
        self._tasks: dict[str, asyncio.Task[DeviceCopy]] = {}

    async def bring_up(self, wish: WeightsWish, tell: Tell) -> Placed:
        """See `Seat.bring_up`."""
        found = await self._store.inspect(wish.source, wish.dtype, fresh=False)
        known = self.copies.get(found.digest or "")
        if known is None:
            return await self._load(wish, found.digest, tell)
        known.holding.leases += 1
        self.ledger.touch(known.below.digest)
        return self._placed(known, found.record, Tier.DEVICE, ())

    def _placed(
        self, copy: DeviceCopy, record: SourceRecord, from_tier: Tier, steps: tuple[Step, ...]
    ) -> Placed:
        """A copy for the one it is leased for; `record` is the source that led to it."""
        held = ExitStack()
        held.callback(self._let_go, copy.holding)
        self._changed()
        place = OnDevice(copy.memory.handle, copy.memory.size, copy.layout.partitions)
        return Placed(copy.below.manifest, record, place, from_tier, steps, held)

    def _let_go(self, holding: Holding) -> None:
        holding.leases -= 1
        self._changed()

    async def _load(self, wish: WeightsWish, digest: str | None, tell: Tell) -> Placed:
        """Brings a checkpoint here, or joins those who do."""
        below = await self._reach(wish, digest, tell)
        try:
            while (load := self._load_of(wish, below)).abandoned:
                await load.ended()
            copy = await load.join(tell, Priority.DEMAND)
            return self._placed(copy, below.record, below.from_tier, (*below.steps, *copy.steps))
        finally:
            below.release()

    async def _reach(self, wish: WeightsWish, digest: str | None, tell: Tell) -> Lease:
        """A lease on SSD, or in the pool for what is not there.

        What is imported now comes into the pool in the same pass, if it has room there. Copies
        here that are idle hold theirs below: where these are in the way, they go.
        """
        tiers = (Tier.SSD, Tier.DRAM) if self._is_on_ssd(digest) else (Tier.DRAM, Tier.SSD)

        async def reach() -> Lease:
            try:
                return await self._promote(wish, tiers[0], tell)
            except (NoCapacity, ModelTooLarge) as error:
                try:
                    return await self._promote(wish, tiers[1], tell)
                except (NoCapacity, ModelTooLarge):
                    raise error from None

        return await self._making_room(reach)

    def _is_on_ssd(self, digest: str | None) -> bool:
        copies = self._store.copies()
        return any(copy.tier is Tier.SSD and copy.digest == digest for copy in copies)

    async def _promote(
        self, wish: WeightsWish, tier: Tier, tell: Tell, sink: Ascent | None = None
    ) -> Lease:
        return await self._store.promote(
            wish.source, wish.dtype, tier, tell, pack=wish.pack, give_up=True, sink=sink
        )

    def _load_of(self, wish: WeightsWish, below: Lease) -> Load[DeviceCopy]:
        load = self.loads.get(below.digest)
        if load is None:
            load = Load(LoadPhase.COPY, below.from_tier, lambda: self._load_changed(below.digest))
            self.loads[below.digest] = load
            load.report(0, below.size_bytes)
            load.begin(self._run(wish, below.digest, load))
        return load

    def _load_changed(self, digest: str) -> None:
        """Ends a load that nobody waits for any more."""
        load, task = self.loads.get(digest), self._tasks.pop(digest, None)
        if load is not None and task is not None:
            if load.abandoned:
                task.cancel()
            else:
                self._tasks[digest] = task
        self._changed()

    async def _run(self, wish: WeightsWish, digest: str, load: Load[DeviceCopy]) -> DeviceCopy:
        task = asyncio.current_task()
        assert task is not None, "a load runs in a task of its own"
        self._tasks[digest] = task
        try:
            return await self._bring(wish, digest, load)
        finally:
            self._tasks.pop(digest, None)
            del self.loads[digest]
            self._changed()

    async def _bring(self, wish: WeightsWish, digest: str, load: Load[DeviceCopy]) -> DeviceCopy:
        with ExitStack() as held:
            below = await self._reach(wish, digest, _ignore)
            held.callback(below.release)
            _check_same(below, digest)
            layout = lay_out(below.manifest)
            async with self._allocated(layout.size_bytes) as memory:
                steps = await self._fill(wish, below, layout, memory, load)
                holding = self.ledger.add(digest, layout.size_bytes)
                copy = DeviceCopy(below, layout, memory, holding, steps)
                self.copies[digest] = copy
                load.land(holding)
            held.pop_all()
            return copy

    @asynccontextmanager
    async def _allocated(self, size: int) -> AsyncIterator[Allocation]:
        """Memory that is free again afterwards, unless a copy has come to own it."""
        gone = [self.copies.pop(digest) for digest in self.ledger.reserve(size)]
        try:
            await uninterrupted(self._give_back_all(gone))
            memory = await self._making_room(lambda: self.memory.allocate(size))
            try:
                yield memory
            except BaseException:
                await uninterrupted(self.memory.free(memory))
                raise
        finally:
            self.ledger.unreserve(size)

    async def _fill(
        self,
        wish: WeightsWish,
        below: Lease,
        layout: Layout,
        memory: Allocation,
        load: Load[DeviceCopy],
    ) -> tuple[Step, ...]:
        began = self._clock.now()
        job = CopyJob(priority=lambda: load.priority, advance=load.advance)
        ascent = Ascent(self._pool, self.memory.copies, job, layout, memory.address)
        try:
            before = await self._feed(wish, below, ascent)
            await ascent.finish()
        except BaseException:
            await ascent.give_up()
            raise
        ended = self._clock.now()
        _log.info("device.loaded", digest=below.digest, seconds=round(ended - began, 3))
        metrics.record_load("copy", below.size_bytes, ended - began)
        copied = Step(LoadPhase.COPY, began, ended - began, below.size_bytes)
        return (*before, copied)

    async def _feed(self, wish: WeightsWish, below: Lease, ascent: Ascent) -> tuple[Step, ...]:
        """Hands all chunks to `ascent`, those that have to be read as they come."""
        if below.chunks:
            ascent.feed(below.chunks)
            await ascent.settle()
            return ()
        try:
            whole = await self._promote(wish, Tier.DRAM, _ignore, ascent)
        except (NoCapacity, ModelTooLarge):
            passing = partial(self._store.pass_through, below, ascent)
            return (await self._making_room(passing),)
        try:
            _check_same(whole, below.digest)
            ascent.feed(whole.chunks)
            await ascent.settle()
            return whole.steps
        except BaseException:
            await ascent.give_up()
            raise
        finally:
            whole.release()

    def on_device(self) -> list[Copy]:
        """Every checkpoint here, and those on their way."""
        return [_copy(copy) for copy in self.copies.values()] + [
            _on_the_way(digest, load.progress) for digest, load in self.loads.items()
        ]

    async def evict(self, digest: str) -> bool:
        """Frees a checkpoint's room; false if it is not here.

        Raises:
            CheckpointLeased: it is in use, or being loaded.
        """
        if digest in self.loads:
            raise CheckpointLeased(f"checkpoint {digest} is being loaded")
        copy = self.copies.get(digest)
        if copy is None:
            return False
        if copy.holding.leases:
            raise CheckpointLeased(
                f"checkpoint {digest} is in use: end the instances that serve it"
            )
        self.ledger.remove(digest)
        await self._give_back(self.copies.pop(digest))
        self._changed()
        return True

    async def _making_room(self, work: Callable[[], Awaitable[Result]]) -> Result:
        """What `work` gives. While it lacks room, idle copies go, with what they hold below."""
        while True:
            try:
                return await work()
            except (NoCapacity, ModelTooLarge):
                if not await self._give_back_one():
                    raise

    async def _give_back_one(self) -> bool:
        """Frees the idle copy that is missed least; false if there is none."""
        digest = self.ledger.least_missed
        if digest is None:
            return False
        self.ledger.remove(digest)
        await uninterrupted(self._give_back(self.copies.pop(digest)))
        self._changed()
        return True

    async def _give_back_all(self, copies: Sequence[DeviceCopy]) -> None:
        for copy in copies:
            await self._give_back(copy)

    async def _give_back(self, copy: DeviceCopy) -> None:
        """Frees the memory of a copy that is struck out of the books."""
        try:
            await self.memory.free(copy.memory)
        finally:
            copy.below.release()

    async def close(self) -> None:
        """Ends loads, and gives everything back. No instance may be left."""
        for task in list(self._tasks.values()):
            task.cancel()
        await asyncio.gather(*(load.ended() for load in list(self.loads.values())))
        for digest in list(self.copies):
            self.ledger.remove(digest)
            try:
                await self._give_back(self.copies.pop(digest))
            except SllmError as error:
                _log.warning("device.not_freed", digest=digest, problem=error.message)

    def check_integrity(self) -> None:
        """Raises AssertionError if the books and the device's allocations differ."""
        self.ledger.check_integrity(self.copies)
        owned = {copy.memory.address for copy in self.copies.values()}
        if not self.loads:
            assert owned == self.memory.allocations, "an allocation is nobody's"
            assert self.ledger.reserved == 0, "room is reserved for no load"


def _check_same(lease: Lease, digest: str) -> None:
    if lease.digest != digest:
        raise corrupt(lease.directory, "was changed while it was loaded; try again")


def _copy(copy: DeviceCopy) -> Copy:
    size, checkpoint = copy.below.size_bytes, copy.below.checkpoint
    leased = copy.holding.leases > 0
    return Copy(copy.below.digest, Tier.DEVICE, size, size, checkpoint.urls, leased)


def _on_the_way(digest: str, progress: Progress) -> Copy:
    return Copy(
        digest=digest,
        tier=Tier.DEVICE,
        size_bytes=progress.total_bytes,
        resident_bytes=progress.loaded_bytes,
        sources=(),
        leased=True,
    )


def _ignore(_: Progress) -> None:
    return None
