import asyncio

import pytest

from sllm.errors import (
    CheckpointLeased,
    CheckpointNotFound,
    ModelTooLarge,
    NoCapacity,
)
from sllm.node.tiers.types import Tier
from tests.node.stores import Bench, gate_on
from tests.support import assert_eventually


async def test_the_least_recently_used_makes_room_in_the_pool(bench: Bench) -> None:
    await bench.reopen(pool_models=2)
    first, second = await bench.leave(0, Tier.DRAM), await bench.leave(1, Tier.DRAM)
    await bench.leave(0, Tier.DRAM)
    third = await bench.leave(2, Tier.DRAM)
    assert bench.on(Tier.DRAM) == {first, third}
    assert bench.on(Tier.SSD) == {first, second, third}


async def test_what_is_leased_is_never_evicted_from_the_pool(bench: Bench) -> None:
    await bench.reopen(pool_models=2)
    lease, other = await bench.promote(0, Tier.DRAM), await bench.promote(1, Tier.DRAM)
    with pytest.raises(NoCapacity, match="DRAM"):
        await bench.promote(2, Tier.DRAM)
    bench.store.check_integrity()
    other.release()
    third = await bench.promote(2, Tier.DRAM)
    assert bench.on(Tier.DRAM) == {lease.digest, third.digest}


async def test_the_least_recently_used_makes_room_on_ssd_and_leaves_the_pool(bench: Bench) -> None:
    await bench.reopen(ssd_models=2)
    first = await bench.leave(0, Tier.DRAM)
    lease = await bench.promote(1, Tier.SSD)
    third = await bench.leave(2, Tier.SSD)
    assert bench.on(Tier.SSD) == {lease.digest, third}
    assert bench.on(Tier.DRAM) == set()
    assert not (bench.directory / "tier" / first).exists()


async def test_what_is_leased_is_never_evicted_from_ssd(bench: Bench) -> None:
    await bench.reopen(ssd_models=2)
    lease, other = await bench.promote(0, Tier.SSD), await bench.promote(1, Tier.DRAM)
    with pytest.raises(NoCapacity, match="SSD"):
        await bench.promote(2, Tier.SSD)
    assert bench.on(Tier.SSD) == {lease.digest, other.digest}
    assert lease.directory.is_dir()


async def test_two_loads_do_not_count_on_the_same_room(bench: Bench) -> None:
    await bench.reopen(pool_models=1)
    with gate_on("imports") as gate:
        first = asyncio.create_task(bench.promote(0, Tier.DRAM))
        await assert_eventually(lambda: gate.begun)
        with pytest.raises(NoCapacity, match="DRAM"):
            await bench.promote(1, Tier.DRAM)
        gate.open()
        await first
    bench.store.check_integrity()


@pytest.mark.parametrize(("ssd", "pool", "tier"), [(0.5, 8, "SSD"), (8, 0.5, "DRAM")])
async def test_a_model_larger_than_a_tier_is_refused_with_numbers(
    bench: Bench, ssd: float, pool: float, tier: str
) -> None:
    await bench.reopen(ssd, pool)
    with pytest.raises(ModelTooLarge, match=rf"takes \d+ bytes, and the {tier} tier .* \d+ in all"):
        await bench.promote(0, Tier[tier])
    assert bench.store.copies() == ()
    assert bench.pool.used_bytes == 0


async def test_releasing_twice_is_releasing_once(bench: Bench) -> None:
    one, other = await bench.promote(0, Tier.DRAM), await bench.promote(0, Tier.DRAM)
    one.release()
    one.release()
    bench.store.check_integrity()
    with pytest.raises(CheckpointLeased):
        await bench.store.evict(other.digest, Tier.DRAM)
    other.release()
    await bench.store.evict(other.digest, Tier.DRAM)


async def test_eviction_frees_a_tier(bench: Bench) -> None:
    digest = await bench.leave(0, Tier.DRAM)
    await bench.store.evict(digest, Tier.DRAM)
    assert (bench.on(Tier.DRAM), bench.on(Tier.SSD)) == (set(), {digest})
    await bench.leave(0, Tier.DRAM)
    await bench.store.evict(digest, Tier.SSD)
    assert bench.store.copies() == ()
    assert [usage.used_bytes for usage in bench.store.usage()] == [0, 0]
    assert {path.name for path in (bench.directory / "tier").iterdir()} == {".lock"}
    bench.store.check_integrity()


async def test_eviction_says_why_not(bench: Bench) -> None:
    for tier in (Tier.SSD, Tier.DRAM):
        with pytest.raises(CheckpointNotFound, match=tier.name):
            await bench.store.evict("0" * 32, tier)
    lease = await bench.promote(0, Tier.SSD)
    with pytest.raises(CheckpointNotFound, match="DRAM"):
        await bench.store.evict(lease.digest, Tier.DRAM)
    with pytest.raises(CheckpointLeased):
        await bench.store.evict(lease.digest, Tier.SSD)
    with gate_on("reads") as gate:
        read = asyncio.create_task(bench.promote(0, Tier.DRAM))
        await assert_eventually(lambda: gate.begun)
        with pytest.raises(CheckpointLeased, match="being loaded"):
            await bench.store.evict(lease.digest, Tier.DRAM)
        gate.open()
        await read
