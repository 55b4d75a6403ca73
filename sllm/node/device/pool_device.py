"""The device of a node without accelerators: the processors, which read weights in the pool."""

import math
import resource
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

from sllm import machine
from sllm.clock import MonotonicClock
from sllm.errors import CheckpointNotFound
from sllm.node.device.interface import DeviceInfo, InPool, OnDisk, Placed, Seat, WeightsWish
from sllm.node.device.kv_sharing import KvShare, KvSharing
from sllm.node.store.tier_store import TierStore
from sllm.node.tiers.types import Copy, Tier, TierUsage
from sllm.node.transfers.loads import Tell
from sllm.node.transfers.work import Found

_OTHER_DESCRIPTORS: Final = 256
"""Of a worker, beside those by which the processes that run its model are connected."""


class PoolDevice:
    """See `Devices`. Nothing is copied: weights in the pool are where kernels read them."""

    def __init__(self, store: TierStore, kv_bytes: int) -> None:
        self._store = store
        self._kv_bytes = kv_bytes
        self._sharing = KvSharing(kv_bytes, MonotonicClock())
        self._processors = machine.processors()

    @property
    def kv_capacity_bytes(self) -> int:
        """See `Devices.kv_capacity_bytes`."""
        return self._kv_bytes

    @property
    def max_together(self) -> int:
        """See `Devices.max_together`: processes, as many as compute at once."""
        return min(self._processors, _most_connected())

    def check_fits(self, size_bytes: int) -> None:
        """See `Devices.check_fits`: the store says it itself, when the pool makes room."""

    @asynccontextmanager
    async def seat(self, found: Found, kv_bytes: int) -> AsyncIterator[Seat]:
        """See `Devices.seat`."""
        with self._sharing.share(kv_bytes) as share:
            yield _PoolSeat(self._store, share)

    def infos(self) -> tuple[DeviceInfo, ...]:
        """See `Devices.infos`."""
        return ()

    def copies(self) -> tuple[Copy, ...]:
        """See `Devices.copies`."""
        return ()

    def usage(self) -> tuple[TierUsage, ...]:
        """See `Devices.usage`."""
        return ()

    @property
    def queued_bytes(self) -> int:
        """See `Devices.queued_bytes`."""
        return 0

    @property
    def in_flight_bytes(self) -> int:
        """See `Devices.in_flight_bytes`."""
        return 0

    def subscribe(self, watcher: Callable[[], None]) -> None:
        """See `Devices.subscribe`: the store tells its own watchers."""

    async def evict(self, digest: str) -> None:
        """See `Devices.evict`."""
        raise CheckpointNotFound(
            f"this node has no device tier that could hold checkpoint {digest}: the pool is its "
            "device; evict it from DRAM"
        )

    async def close(self) -> None:
        """See `Devices.close`."""


class _PoolSeat:
    """See `Seat`."""

    def __init__(self, store: TierStore, kv_share: KvShare) -> None:
        self.kv_share = kv_share
        """See `Seat.kv_share`."""
        self._store = store

    @property
    def index(self) -> None:
        """See `Seat.index`."""
        return None

    @property
    def environment(self) -> Mapping[str, str]:
        """See `Seat.environment`."""
        return {}

    async def bring_up(self, wish: WeightsWish, tell: Tell) -> Placed:
        """See `Seat.bring_up`."""
        if wish.expert_bytes is not None:
            return await self._keep_on_disk(wish, wish.expert_bytes, tell)
        lease = await self._store.promote(
            wish.source,
            wish.dtype,
            Tier.DRAM,
            tell,
            pack=wish.pack,
            form=wish.form,
            early=wish.early,
            peers=wish.peers,
        )
        place = InPool(lease.chunks, self._store.chunk_bytes)
        return Placed(
            lease.manifest,
            lease.record,
            place,
            lease.from_tier,
            lease.steps,
            lease.held,
            lease.directory if lease.record.form else None,
        )

    async def _keep_on_disk(self, wish: WeightsWish, expert_bytes: int, tell: Tell) -> Placed:
        """A copy on SSD with digests of all its chunks: it is read for as long as it is used."""
        reach = partial(self._store.promote, wish.source, wish.dtype, Tier.SSD, tell)
        lease = await reach(pack=wish.pack)
        if not all(entry.digests for entry in lease.manifest.partitions):
            lease.release()
            lease = await reach(pack=True)
        place = OnDisk(lease.checkpoint.weights, expert_bytes)
        from_tier = min(lease.from_tier, Tier.SSD)
        return Placed(lease.manifest, lease.record, place, from_tier, lease.steps, lease.held)


def _most_connected() -> int:
    """Processes that can be connected, each with each.

    So many of them, n, take n * n / 4 + 4 * n descriptors of the first while they are forked.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most == resource.RLIM_INFINITY:
        most = 1 << 20
    left = max(0, most - _OTHER_DESCRIPTORS)
    return max(1, int(2 * math.sqrt(left + 16) - 8))
