"""The CUDA devices of a node: opened together, each a tier of its own, and seats for instances."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import structlog

from sllm.clock import Clock
from sllm.errors import (
    CheckpointNotFound,
    DeviceFailed,
    DeviceUnavailable,
    ModelTooLarge,
    NoCapacity,
    SllmError,
)
from sllm.node.device.copy_thread import CopyThread
from sllm.node.device.cuda_tier import CudaTier
from sllm.node.device.driver import Driver
from sllm.node.device.interface import DeviceInfo, Seat
from sllm.node.device.memory import DeviceMemory
from sllm.node.device.seats import Identity, Seats
from sllm.node.device.selection import Selected
from sllm.node.store.tier_store import TierStore
from sllm.node.tiers.pool import Pool
from sllm.node.tiers.types import Copy, Tier, TierUsage
from sllm.node.transfers.work import Found

Probe = Callable[[Mapping[str, str]], Awaitable[str]]
"""Told the variables of a worker on a device; says why the engine could not use it, or nothing."""

_log = structlog.get_logger()

_MEASURE_SECONDS = 2.0
"""Between two looks at how much memory is free: others use the devices, too."""


@dataclass(frozen=True, slots=True)
class Budget:
    """How the memory of each device is shared out."""

    kv_bytes: int | None
    """For the KV caches of its instances at most. None: what their weights leave."""
    reserve_bytes: int
    """For what their processes take besides: contexts, kernels, activations."""


class CudaDevices:
    """See `Devices`."""

    def __init__(self, store: TierStore, pool: Pool, clock: Clock) -> None:
        """Of a node with this store and its pool; `open` adds the devices."""
        self._store = store
        self._pool = pool
        self._clock = clock
        self.all: list[Seats] = []
        """In CUDA's order, or that in which they were named."""
        self._memories: list[DeviceMemory] = []
        self._pinned = False
        self._watchers: list[Callable[[], None]] = []
        self._measuring: asyncio.Task[None] | None = None

    async def open(self, selected: Selected, budget: Budget, probe: Probe | None = None) -> None:
        """Opens every device, and pins the pool.

        Args:
            selected: which.
            budget: of each.
            probe: says why the engine could not use a device, if it could not. None: nobody asks.

        Raises:
            DeviceUnavailable: one cannot be used, or is too small; says why, with the numbers.
        """
        try:
            for index in selected.indices:
                self.all.append(await self._open(selected.driver, index, budget))
            await asyncio.gather(*(_check(one, probe) for one in self.all if probe))
            await self._memories[0].pin(self._pool.base_address, self._pool.capacity_bytes)
            self._pinned = True
        except DeviceFailed as error:
            raise DeviceUnavailable(f"a CUDA device cannot be used: {error.message}") from error
        self._measuring = asyncio.create_task(self._measure(), name="device-memory")

    async def _open(self, driver: Driver, index: int, budget: Budget) -> Seats:
        speed = self._store.speeds.dram_to_device
        memory = DeviceMemory(driver, CopyThread(driver, index, self._clock, speed.observe))
        self._memories.append(memory)
        await memory.open()
        name, uuid = await asyncio.to_thread(lambda: (driver.name(index), driver.uuid(index)))
        capacity = _capacity(index, name, memory, budget, self._pool.chunk_bytes)
        tier = CudaTier(self._store, self._pool, memory, capacity, self._clock, self._changed)
        _log.info("device.opened", index=index, model=name, weights_bytes=capacity)
        return Seats(Identity(index, name, uuid), tier, budget.kv_bytes)

    @property
    def kv_capacity_bytes(self) -> int:
        """See `Devices.kv_capacity_bytes`."""
        return sum(device.info.kv_capacity_bytes for device in self.all)

    @property
    def max_together(self) -> int:
        """See `Devices.max_together`: a checkpoint is brought to one device, as a whole."""
        return 1

    def check_fits(self, size_bytes: int) -> None:
        """See `Devices.check_fits`."""
        largest = max(device.tier.copies.ledger.capacity for device in self.all)
        if size_bytes > largest:
            raise ModelTooLarge(
                f"the weights take {size_bytes} bytes, and the largest device of this node has "
                f"{largest} for weights and KV caches"
            )

    @asynccontextmanager
    async def seat(self, found: Found, kv_bytes: int) -> AsyncIterator[Seat]:
        """See `Devices.seat`."""
        self.check_fits(found.size_bytes)
        async with self._choose(found, kv_bytes).seat(found, kv_bytes) as seat:
            yield seat

    def _choose(self, found: Found, kv_bytes: int) -> Seats:
        roomy = [one for one in self.all if one.lacking(found, kv_bytes) <= 0]
        if not roomy:
            told = "; ".join(_told(info) for info in self.infos())
            raise NoCapacity(
                f"an instance needs {found.size_bytes} bytes for its weights and {kv_bytes} for "
                f"its KV cache on one device. {told}"
            )
        return min(roomy, key=lambda one: one.rank(found, kv_bytes))

    def infos(self) -> tuple[DeviceInfo, ...]:
        """See `Devices.infos`."""
        return tuple(device.info for device in self.all)

    def copies(self) -> tuple[Copy, ...]:
        """See `Devices.copies`. One on several devices is told of once."""
        found: dict[str, Copy] = {}
        for copy in (copy for device in self.all for copy in device.tier.told()):
            known = found.get(copy.digest)
            found[copy.digest] = copy if known is None else _both(known, copy)
        return tuple(found.values())

    def usage(self) -> tuple[TierUsage, ...]:
        """See `Devices.usage`."""
        infos = self.infos()
        capacity = sum(info.weights_capacity_bytes for info in infos)
        used = sum(info.weights_used_bytes + info.reserved_bytes for info in infos)
        return (TierUsage(Tier.DEVICE, capacity, used),)

    @property
    def queued_bytes(self) -> int:
        """See `Devices.queued_bytes`."""
        loads = [load for device in self.all for load in list(device.tier.loads.values())]
        return sum(load.remaining_bytes for load in loads)

    @property
    def in_flight_bytes(self) -> int:
        """See `Devices.in_flight_bytes`."""
        return sum(memory.copies.in_flight_bytes for memory in self._memories)

    async def evict(self, digest: str) -> None:
        """See `Devices.evict`."""
        gone = [await device.tier.evict(digest) for device in self.all]
        if not any(gone):
            raise CheckpointNotFound(f"the DEVICE tier does not hold checkpoint {digest}")

    def subscribe(self, watcher: Callable[[], None]) -> None:
        """See `Devices.subscribe`."""
        self._watchers.append(watcher)

    async def close(self) -> None:
        """See `Devices.close`."""
        if self._measuring is not None:
            self._measuring.cancel()
            await asyncio.wait([self._measuring])
        for device in self.all:
            await device.tier.close()
        if self._pinned:
            with suppress(DeviceFailed):
                await self._memories[0].unpin(self._pool.base_address)
        for memory in self._memories:
            await asyncio.to_thread(memory.copies.close)

    def check_integrity(self) -> None:
        """Raises AssertionError if the books of a device and its allocations differ."""
        for device in self.all:
            device.tier.check_integrity()

    async def measure(self) -> None:
        """Takes note of how much memory is free, whoever uses the rest."""
        before = self.infos()
        try:
            for memory in self._memories:
                await memory.measure()
        except SllmError as error:
            _log.warning("device.not_measured", problem=error.message)
        if self.infos() != before:
            self._changed()

    async def _measure(self) -> None:
        while True:
            await self._clock.sleep(_MEASURE_SECONDS)
            await self.measure()

    def _changed(self) -> None:
        for watcher in self._watchers:
            watcher()


def _capacity(index: int, name: str, memory: DeviceMemory, budget: Budget, chunk_bytes: int) -> int:
    """Bytes for weights and KV caches: what is free now, less what workers take beside."""
    capacity = memory.free_bytes - budget.reserve_bytes
    if capacity < chunk_bytes:
        raise DeviceUnavailable(
            f"device {index} ({name}) is too small: of its {memory.total_bytes} bytes "
            f"{memory.free_bytes} are free; workers are to have {budget.reserve_bytes} "
            f"(--device-reserve), which leaves {capacity} for weights and KV caches"
        )
    return capacity


async def _check(seats: Seats, probe: Probe) -> None:
    """Has the engine try a device on which nothing but kernels can read weights."""
    if not await seats.tier.memory.is_apart():
        return
    try:
        problem = await probe(seats.environment)
    except SllmError as error:
        problem = error.message
    if problem:
        raise DeviceUnavailable(
            f"the engine cannot use device {seats.device.index} ({seats.device.name}): {problem}; "
            "install a torch for this machine's driver, or run the node with --device cpu"
        )


def _told(info: DeviceInfo) -> str:
    """What a device's memory is taken by."""
    in_use = info.weights_used_bytes - info.idle_bytes
    return (
        f"Device {info.index}: of {info.weights_capacity_bytes} bytes, weights in use have "
        f"{in_use}, KV caches {info.kv_used_bytes} (of {info.kv_capacity_bytes} at most) and "
        f"starts under way {info.reserved_bytes}; {info.left_bytes} are left"
    )


def _both(one: Copy, other: Copy) -> Copy:
    """The fuller of two copies of one checkpoint; leased if either is."""
    fuller = max(one, other, key=lambda copy: copy.resident_bytes)
    leased = one.leased or other.leased
    return Copy(
        fuller.digest,
        fuller.tier,
        fuller.size_bytes,
        fuller.resident_bytes,
        fuller.sources,
        leased,
    )
