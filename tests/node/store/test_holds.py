"""Holds on a real store: they keep what nothing uses, and end by the clock or by a word."""

import asyncio
from functools import partial

import pytest

from sllm.clock import ManualClock
from sllm.errors import CheckpointLeased, ModelTooLarge, NoCapacity
from sllm.node.store.holds import Holds, HoldSpec
from sllm.node.tiers.types import Tier
from tests.node.stores import Bench, gate_on, settle
from tests.support import assert_eventually


class Kept:
    """Holds over a bench's store, by a clock that stands still."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.clock = ManualClock()
        self.changes = 0
        self.holds = Holds(self.clock, self._changed, bench.store.keeping.pinned)

    def _changed(self) -> None:
        self.changes += 1

    async def hold(
        self, seed: int, tier: Tier = Tier.DRAM, ttl: float | None = None, hold_id: str = "pin"
    ) -> None:
        source = self.bench.model(seed)
        promote = partial(self.bench.store.promote, source, None, tier, pack=True)
        await self.holds.bring_up(HoldSpec(hold_id, ttl), tier, promote)
        self.bench.store.check_integrity()

    def ids_on(self, digest: str, tier: Tier) -> list[str]:
        return [hold.hold_id for hold in self.holds.on(digest, tier)]


async def test_what_is_held_is_not_evicted_until_it_is_released(bench: Bench) -> None:
    await bench.reopen(pool_models=1)
    kept = Kept(bench)
    await kept.hold(0)
    (digest,) = bench.on(Tier.DRAM)
    with pytest.raises(NoCapacity, match="DRAM"):
        await bench.promote(1, Tier.DRAM)
    for tier in (Tier.DRAM, Tier.SSD):
        with pytest.raises(CheckpointLeased, match="unpin"):
            await bench.store.evict(digest, tier)
    assert kept.ids_on(digest, Tier.DRAM) == ["pin"]
    assert kept.ids_on(digest, Tier.SSD) == []

    kept.holds.release("pin")
    kept.holds.release("pin")
    await bench.leave(1, Tier.DRAM)
    assert digest not in bench.on(Tier.DRAM)


async def test_a_hold_expires_by_the_clock(bench: Bench) -> None:
    kept = Kept(bench)
    await kept.hold(0, ttl=10.0)
    (digest,) = bench.on(Tier.DRAM)
    assert kept.changes
    (hold,) = kept.holds.on(digest, Tier.DRAM)
    assert hold.expires_at is not None

    await settle()
    kept.clock.advance(9.0)
    await settle()
    assert kept.ids_on(digest, Tier.DRAM)
    kept.clock.advance(1.0)
    await assert_eventually(lambda: not kept.ids_on(digest, Tier.DRAM))
    await bench.store.evict(digest, Tier.DRAM)


async def test_a_newer_hold_of_the_same_id_replaces_the_older(bench: Bench) -> None:
    kept = Kept(bench)
    await kept.hold(0, ttl=1.0)
    await kept.hold(0, ttl=None)
    await settle()
    kept.clock.advance(2.0)
    await settle()
    (digest,) = bench.on(Tier.DRAM)
    (hold,) = kept.holds.on(digest, Tier.DRAM)
    assert hold.expires_at is None
    kept.holds.release("pin")
    await bench.store.evict(digest, Tier.DRAM)


async def test_holds_of_different_ids_hold_together(bench: Bench) -> None:
    kept = Kept(bench)
    await kept.hold(0, Tier.SSD, hold_id="a")
    await kept.hold(0, Tier.SSD, hold_id="b")
    (digest,) = bench.on(Tier.SSD)
    assert kept.ids_on(digest, Tier.SSD) == ["a", "b"]
    kept.holds.release("a")
    with pytest.raises(CheckpointLeased):
        await bench.store.evict(digest, Tier.SSD)
    kept.holds.close()
    await bench.store.evict(digest, Tier.SSD)


async def test_a_hold_that_is_released_on_its_way_never_comes(bench: Bench) -> None:
    kept = Kept(bench)
    with gate_on("imports") as gate:
        coming = asyncio.create_task(kept.hold(0, Tier.SSD))
        await assert_eventually(lambda: gate.begun)
        kept.holds.release("pin")
        gate.open()
        await coming
    (digest,) = bench.on(Tier.SSD)
    assert kept.ids_on(digest, Tier.SSD) == []
    await bench.store.evict(digest, Tier.SSD)


async def test_a_hold_that_fails_leaves_the_one_before(bench: Bench) -> None:
    await bench.reopen(pool_models=0.5)
    kept = Kept(bench)
    await kept.hold(0, Tier.SSD)
    with pytest.raises(ModelTooLarge):
        await kept.hold(0, Tier.DRAM)
    (digest,) = bench.on(Tier.SSD)
    assert kept.ids_on(digest, Tier.SSD) == ["pin"]
    kept.holds.close()
