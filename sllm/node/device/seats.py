"""Seats on one device: the room that a start is given, until its instance has gone."""

from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass

from sllm.node.device.cuda_tier import CudaTier
from sllm.node.device.driver import WORKER_DEVICE_VARIABLE
from sllm.node.device.interface import DeviceInfo, Placed, Seat, WeightsWish
from sllm.node.device.layout import on_device_bytes
from sllm.node.transfers.loads import Tell
from sllm.node.transfers.work import Found


@dataclass(frozen=True, slots=True)
class Identity:
    """Which device it is."""

    index: int
    """In CUDA's order."""
    name: str
    """Of its model."""
    uuid: str


class Seats:
    """The seats of one device. Weights and KV caches share its memory. Belongs to the loop."""

    def __init__(self, device: Identity, tier: CudaTier, kv_bytes: int | None) -> None:
        """Begins with none taken; `kv_bytes`: the most for KV caches, if they may not have all."""
        self.tier = tier
        self.device = device
        self._ledger = tier.copies.ledger
        self._reservations = tier.copies.reservations
        capacity = self._ledger.capacity
        self._kv_bytes = capacity if kv_bytes is None else min(kv_bytes, capacity)

    @property
    def environment(self) -> Mapping[str, str]:
        """See `Seat.environment`."""
        return {"CUDA_VISIBLE_DEVICES": self.device.uuid, WORKER_DEVICE_VARIABLE: "cuda"}

    @property
    def info(self) -> DeviceInfo:
        """The device as it is now."""
        memory, ledger, reservations = self.tier.memory, self._ledger, self._reservations
        return DeviceInfo(
            index=self.device.index,
            name=self.device.name,
            uuid=self.device.uuid,
            total_bytes=memory.total_bytes,
            free_bytes=memory.free_bytes,
            weights_capacity_bytes=ledger.capacity,
            weights_used_bytes=ledger.used - reservations.kv_bytes - reservations.weights_bytes,
            kv_capacity_bytes=self._kv_bytes,
            kv_used_bytes=reservations.kv_bytes,
            reserved_bytes=reservations.weights_bytes,
            idle_bytes=ledger.idle,
        )

    def lacking(self, found: Found, kv_bytes: int) -> int:
        """Bytes that a start lacks here, even if all that is idle went; none, if not positive."""
        own = self.tier.copies.by_digest.get(found.digest or "")
        kept = own.holding.size if own and not own.holding.leases else 0  # it is not to go
        free = self._ledger.capacity - self._ledger.used + self._ledger.idle - kept
        over = self._reservations.kv_bytes + kv_bytes - self._kv_bytes
        return max(self._to_come(found) + kv_bytes - free, over)

    def rank(self, found: Found, kv_bytes: int) -> tuple[bool, bool, int]:
        """Sorts devices for a start: those with its weights, then those with room, the most first.

        Other programs may use the device, so that room as measured counts beside the books.
        """
        to_come, idle = self._to_come(found), self._ledger.idle
        measured = self.tier.memory.free_bytes + idle >= to_come + kv_bytes
        return (to_come > 0, not measured, self._ledger.used - idle)

    def _to_come(self, found: Found) -> int:
        """Bytes for weights that are not here, nor on their way, nor have room that is kept."""
        there = self.tier.has(found.digest) or self._reservations.has(found.record)
        return 0 if there else on_device_bytes(found.size_bytes)

    @asynccontextmanager
    async def seat(self, found: Found, kv_bytes: int) -> AsyncIterator[Seat]:
        """Room for one instance, kept while the block lasts; on entry, what had to go is gone.

        Raises:
            NoCapacity, ModelTooLarge: there is not so much room.
            DeviceFailed: CUDA has failed.
        """
        copies = self.tier.copies
        with ExitStack() as held:
            own = copies.by_digest.get(found.digest or "")
            if own is not None:
                copies.hold(own, held)
            gone = copies.enter(found.record, self._to_come(found), kv_bytes, held)
            await copies.free(gone)
            yield _Seat(self, found)


class _Seat:
    """See `Seat`."""

    def __init__(self, seats: Seats, found: Found) -> None:
        self._seats = seats
        self._found = found

    @property
    def index(self) -> int:
        """See `Seat.index`."""
        return self._seats.device.index

    @property
    def environment(self) -> Mapping[str, str]:
        """See `Seat.environment`."""
        return self._seats.environment

    @property
    def kv_share(self) -> None:
        """See `Seat.kv_share`: a cache is allocated on a device, whole."""

    async def bring_up(self, wish: WeightsWish, tell: Tell) -> Placed:
        """See `Seat.bring_up`."""
        return await self._seats.tier.bring_up(self._found, wish, tell)
