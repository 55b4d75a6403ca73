"""Weights to the device by sllm's own tiers, in this process: from the pool, and from the disk."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.disk import drop_from_page_cache
from sllm.clock import MonotonicClock
from sllm.node.device.cuda_devices import Budget, CudaDevices
from sllm.node.device.interface import WeightsWish
from sllm.node.device.selection import parse_device, select
from sllm.node.store.tier_store import TierStore
from sllm.node.tiers.pool import Pool
from sllm.node.tiers.types import Tier

GIB = 1 << 30
SSD_BYTES = 1 << 40
READ_THREADS = 8


@dataclass(frozen=True, slots=True)
class Timed:
    """Seconds of every round, and what was moved."""

    dram: tuple[float, ...]
    ssd: tuple[float, ...]
    passing: tuple[float, ...]
    """From the disk, through a pool that is smaller than the checkpoint."""
    size_bytes: int


def measure(model: Path, scratch: Path, rounds: int) -> Timed:
    """Loads a model of safetensors, which are read where they lie, over and over."""
    files = sorted(model.glob("*.safetensors"))
    return asyncio.run(_measure(model, files, scratch, rounds))


async def _measure(model: Path, files: Sequence[Path], scratch: Path, rounds: int) -> Timed:
    size = sum(file.stat().st_size for file in files)
    async with _tiers(scratch / "whole", size + GIB) as (store, devices):
        ssd = [await _once(store, devices, model, files, Tier.SSD) for _ in range(rounds + 1)]
        (await store.promote(str(model), None, Tier.DRAM)).release()
        dram = [await _once(store, devices, model, files, Tier.DRAM) for _ in range(rounds)]
    async with _tiers(scratch / "part", GIB) as (store, devices):
        part = [await _once(store, devices, model, files, Tier.SSD) for _ in range(2)]
    return Timed(tuple(dram), tuple(ssd[1:]), tuple(part[1:]), size)  # the first reads digests too


@asynccontextmanager
async def _tiers(directory: Path, pool_bytes: int) -> AsyncIterator[tuple[TierStore, CudaDevices]]:
    selected = select(parse_device("cuda:0"))
    assert selected is not None, "there is a device"
    pool, clock = Pool(pool_bytes), MonotonicClock()
    pool.start_populating()
    store = await TierStore.open(directory, SSD_BYTES, pool, clock=clock, read_threads=READ_THREADS)
    devices = CudaDevices(store, pool, clock)
    try:
        await devices.open(selected, Budget(kv_bytes=GIB, reserve_bytes=GIB))
        yield store, devices
    finally:
        await devices.close()
        await store.close()
        pool.close()


async def _once(
    store: TierStore, devices: CudaDevices, model: Path, files: Sequence[Path], tier: Tier
) -> float:
    """Seconds until all is on the device, from the tier that it is on."""
    found = await store.inspect(str(model), None)
    if tier is Tier.SSD:
        await asyncio.to_thread(drop_from_page_cache, files)
    async with devices.seat(found, 0) as seat:
        began = time.perf_counter()
        placed = await seat.bring_up(WeightsWish(str(model), None, False), lambda _: None)
        seconds = time.perf_counter() - began
        placed.release()
    digest = placed.manifest.digest
    await devices.evict(digest)
    if tier is Tier.SSD and any(copy.tier is Tier.DRAM for copy in store.copies()):
        await store.evict(digest, Tier.DRAM)  # the next read must not find it there
    return seconds
