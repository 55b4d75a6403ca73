"""The device tier of one CUDA device: who gets which checkpoint there, and who waits for it."""

import asyncio
from collections.abc import Callable
from contextlib import ExitStack

import structlog

from sllm.clock import Clock
from sllm.errors import CheckpointLeased, SllmError
from sllm.node.device.copies import Copies, DeviceCopy
from sllm.node.device.interface import OnDevice, Placed, WeightsWish
from sllm.node.device.loading import Loader
from sllm.node.device.memory import DeviceMemory
from sllm.node.store.lease import Lease
from sllm.node.store.tier_store import TierStore
from sllm.node.tiers.checkpoints import SourceRecord
from sllm.node.tiers.pool import Pool
from sllm.node.tiers.types import Copy, Tier
from sllm.node.transfers.loads import Load, Tell
from sllm.node.transfers.work import Found, LoadPhase, Priority, Progress, Step

_log = structlog.get_logger()


class CudaTier:
    """See `Seat.bring_up`. Belongs to the event loop.

    A copy that nobody uses holds nothing on the tiers below. When they give theirs up it goes too:
    it could not be found any more.
    """

    def __init__(
        self,
        store: TierStore,
        pool: Pool,
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
            capacity_bytes: of it, for weights and KV caches.
            clock: measures.
            changed: called after every change of contents, leases or loads.
        """
        self.memory = memory
        self.copies = Copies(memory, capacity_bytes, clock, self._changed)
        self.copies.ledger.reload_seconds = store.reloads.to_device
        self.loads: dict[str, Load[DeviceCopy]] = {}
        """Under way, by digest."""
        self._store = store
        self._loader = Loader(store, pool, self.copies, clock)
        self._tell_changed = changed
        self._tasks: dict[str, asyncio.Task[DeviceCopy]] = {}
        self._dropping: set[asyncio.Task[None]] = set()
        store.subscribe(self._drop_the_lost)

    def has(self, digest: str | None) -> bool:
        """Whether a checkpoint is here, or being loaded."""
        return digest in self.copies.by_digest or digest in self.loads

    async def bring_up(self, found: Found, wish: WeightsWish, tell: Tell) -> Placed:
        """See `Seat.bring_up`; `found` is what is wished for, as it was found before."""
        copy = self.copies.by_digest.get(found.digest or "")
        if copy is not None:
            return self._placed(copy, found.record, Tier.DEVICE, ())
        return await self._load(wish, found.digest, tell)

    def _placed(
        self, copy: DeviceCopy, record: SourceRecord, from_tier: Tier, steps: tuple[Step, ...]
    ) -> Placed:
        """A copy for one who uses it; `record` is the source that led to it.

        A copy that is used stays on the tier below as well, which has its small files.
        """
        self.copies.reservations.redeem(record)
        held = ExitStack()
        self._store.keeping.keep(copy.digest, held)
        self.copies.hold(copy, held)
        place = OnDevice(copy.memory.handle, copy.memory.size, copy.layout.partitions)
        return Placed(copy.checkpoint.manifest, record, place, from_tier, steps, held)

    async def _load(self, wish: WeightsWish, digest: str | None, tell: Tell) -> Placed:
        """Brings a checkpoint here, or joins those who do."""
        with ExitStack() as held:
            below = await self._loader.reach(wish, digest, tell)
            held.callback(below.release)
            copy = self.copies.by_digest.get(below.digest)  # another source may have led to it
            steps = below.steps
            if copy is None:
                copy = await self._join(wish, below, tell)
                held.callback(self.copies.let_go, copy)
                steps = (*below.steps, *copy.steps)
            return self._placed(copy, below.record, below.from_tier, steps)

    async def _join(self, wish: WeightsWish, below: Lease, tell: Tell) -> DeviceCopy:
        """A copy that is loaded now, leased for the caller."""
        while (load := self._load_of(wish, below)).abandoned:
            await load.ended()
        return await load.join(tell, Priority.DEMAND)

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
        load, task = self.loads.get(digest), self._tasks.get(digest)
        if load is not None and load.abandoned and task is not None:
            del self._tasks[digest]  # once: what is being undone must not be cancelled as well
            task.cancel()
        self._changed()

    async def _run(self, wish: WeightsWish, digest: str, load: Load[DeviceCopy]) -> DeviceCopy:
        task = asyncio.current_task()
        assert task is not None, "a load runs in a task of its own"
        self._tasks[digest] = task
        try:
            return await self._loader.bring(wish, digest, load)
        finally:
            self._tasks.pop(digest, None)
            del self.loads[digest]
            self._changed()

    def told(self) -> list[Copy]:
        """Every checkpoint here, and those on their way."""
        return [copy.told for copy in self.copies.by_digest.values()] + [
            _on_the_way(digest, load.progress) for digest, load in self.loads.items()
        ]

    async def evict(self, digest: str) -> bool:
        """Frees a checkpoint's room; false if it is not here.

        Raises:
            CheckpointLeased: it is in use, or being loaded.
        """
        if digest in self.loads:
            raise CheckpointLeased(f"checkpoint {digest} is being loaded")
        copy = self.copies.by_digest.get(digest)
        if copy is None:
            return False
        if copy.holding.leases:
            raise CheckpointLeased(
                f"checkpoint {digest} is in use: end the instances that serve it"
            )
        await self.copies.free(self.copies.strike_out([digest]))
        return True

    def _changed(self) -> None:
        self._drop_the_lost()
        self._tell_changed()

    def _drop_the_lost(self) -> None:
        """Frees idle copies that no tier below has any more."""
        idle = [copy for copy in self.copies.by_digest.values() if not copy.holding.leases]
        lost = [copy.digest for copy in idle if not self._store.holds(copy.digest)]
        if lost:
            dropping = asyncio.create_task(self._drop(self.copies.strike_out(lost)))
            self._dropping.add(dropping)
            dropping.add_done_callback(self._dropping.discard)

    async def _drop(self, gone: list[DeviceCopy]) -> None:
        try:
            await self.copies.free(gone)
        except SllmError as error:
            _log.warning("device.not_freed", problem=error.message)

    async def close(self) -> None:
        """Ends loads, and gives everything back. No instance may be left."""
        for task in list(self._tasks.values()):
            task.cancel()
        await asyncio.gather(*(load.ended() for load in list(self.loads.values())))
        await asyncio.gather(*self._dropping)
        await self.copies.close()

    def check_integrity(self) -> None:
        """Raises AssertionError if the books and the device's allocations differ."""
        self.copies.check_integrity()
        owned = {copy.memory.address for copy in self.copies.by_digest.values()}
        if not self.loads and not self._dropping:
            assert owned == self.memory.allocations, "an allocation is nobody's"
            reservations = self.copies.reservations
            kept = reservations.kv_bytes + reservations.weights_bytes
            assert self.copies.ledger.reserved == kept, "room is reserved for no load"


def _on_the_way(digest: str, progress: Progress) -> Copy:
    return Copy(
        digest=digest,
        tier=Tier.DEVICE,
        size_bytes=progress.total_bytes,
        resident_bytes=progress.loaded_bytes,
        sources=(),
        leased=True,
    )
