"""Adapters of an instance: held by requests, evicted between them, waited for in turn."""

import asyncio
import math
import random
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from sllm import errors
from sllm.clock import ManualClock
from sllm.node.instances.adapter_use import AdapterSpec, AdapterUse
from sllm.node.instances.adapters import PATIENCE_SECONDS, InstanceAdapters
from sllm.node.instances.worker_client import Worker
from sllm.node.store.tier_store import TierStore
from sllm.node.tiers.types import Tier
from tests.node.stores import Bench, settle
from tests.support import assert_eventually

MOST = 3


class Loading:
    """A worker that notes what it has, and may be told to refuse it."""

    def __init__(self) -> None:
        self.has: dict[str, str] = {}
        """Identity by the id of the load."""
        self.error: errors.SllmError | None = None
        self.most = 0
        self.loads = 0

    async def load_adapter(self, adapter_id: str, identity: str, *told: Any) -> None:
        self.loads += 1
        await asyncio.sleep(0)
        if self.error:
            raise self.error
        assert identity not in self.has.values(), "it is there twice"
        self.has[adapter_id] = identity
        self.most = max(self.most, len(self.has))

    async def unload_adapter(self, adapter_id: str) -> None:
        await asyncio.sleep(0)
        self.has.pop(adapter_id, None)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    await bench.open(ssd_models=20, pool_models=6)
    yield bench
    await bench.close()


class Setting:
    """Adapters over a store, with a worker that notes."""

    def __init__(self, bench: Bench, most: int = MOST) -> None:
        self.bench, self.worker, self.clock = bench, Loading(), ManualClock()
        worker = cast(Worker, self.worker)
        self.changes = 0
        store: TierStore = bench.store
        self.adapters = InstanceAdapters(store, lambda: worker, most, self.clock, self.changed)

    def changed(self) -> None:
        self.changes += 1

    async def spec(self, seed: int, keep_alive: float = math.inf) -> AdapterSpec:
        """Any checkpoint will do: the worker is not told what is in it."""
        source = self.bench.model(seed)
        found = await self.bench.store.inspect(source, None)
        identity = found.record.identity
        return AdapterSpec(f"a{seed}", source, None, True, identity, keep_alive)

    async def take(self, seed: int, **options: float) -> AdapterUse:
        return await self.adapters.take(await self.spec(seed, **options))

    def there(self) -> set[str]:
        return {one.deployment for one, _ in self.adapters.there}

    def leased(self) -> int:
        """Also those that would leave for others."""
        return sum(one.holding.leases > 0 for one in self.bench.store._dram.copies.values())

    def staying(self) -> int:
        return sum(one.leased for one in self.bench.store.copies() if one.tier is Tier.DRAM)


@pytest.fixture
def setting(bench: Bench) -> Setting:
    return Setting(bench)


async def test_one_load_serves_all_who_ask_at_once(setting: Setting) -> None:
    spec = await setting.spec(0)
    uses = await asyncio.gather(*(setting.adapters.take(spec) for _ in range(5)))
    assert len({one.adapter_id for one in uses}) == 1
    assert list(setting.worker.has) == [uses[0].adapter_id]
    assert setting.there() == {"a0"}
    assert setting.changes
    await setting.adapters.close()


async def test_the_least_used_leaves_and_none_in_use(setting: Setting) -> None:
    held = await setting.take(0)
    for seed in (1, 2, 2, 2):
        (await setting.take(seed)).release()
    (await setting.take(3)).release()
    assert setting.there() == {"a0", "a2", "a3"}
    (await setting.take(4)).release()
    assert setting.there() == {"a0", "a2", "a4"}
    assert setting.leased() == len(setting.worker.has) == MOST
    assert setting.staying() == 1, "others can have the room of those that nobody uses"
    held.release()
    await setting.adapters.close()


async def test_who_finds_all_in_use_waits_for_the_first_that_is_not(setting: Setting) -> None:
    uses = [await setting.take(seed) for seed in range(MOST)]
    waiting = asyncio.create_task(setting.adapters.take(await setting.spec(9)))
    await settle()
    (await setting.take(1)).release()  # others go on meanwhile
    assert not waiting.done()
    uses[2].release()
    await asyncio.wait_for(waiting, 10)
    assert setting.there() == {"a0", "a1", "a9"}
    await setting.adapters.close()


async def test_who_waits_long_is_not_passed_over_for_ever(setting: Setting) -> None:
    uses = [await setting.take(seed) for seed in range(MOST)]
    first, ninth = await setting.spec(0), await setting.spec(9)
    waiting = asyncio.create_task(setting.adapters.take(ninth))
    await settle()
    setting.clock.advance(2 * PATIENCE_SECONDS)
    behind = asyncio.create_task(setting.adapters.take(first))
    await settle()
    assert not behind.done(), "it stands behind the one that waits"
    uses[0].release()
    await asyncio.wait_for(waiting, 10)
    uses[1].release()
    await asyncio.wait_for(behind, 10)
    assert setting.there() == {"a0", "a2", "a9"}
    await setting.adapters.close()


async def test_who_leaves_while_waiting_leaves_nothing(setting: Setting) -> None:
    uses = [await setting.take(seed) for seed in range(MOST)]
    specs = [await setting.spec(seed) for seed in (7, 8)]
    waiting = [asyncio.create_task(setting.adapters.take(spec)) for spec in specs]
    await settle()
    for one in waiting:
        one.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    for use in uses:
        use.release()
        use.release()  # twice is once
    (await setting.take(5)).release()
    assert len(setting.there()) == MOST
    await setting.adapters.close()
    assert setting.leased() == 0


async def test_it_leaves_when_its_time_is_up(setting: Setting) -> None:
    (await setting.take(0, keep_alive=5.0)).release()
    again = await setting.take(0, keep_alive=5.0)
    await settle()
    setting.clock.advance(6.0)
    await settle()
    assert setting.there() == {"a0"}, "it is in use"
    again.release()
    await settle()
    setting.clock.advance(6.0)
    await assert_eventually(lambda: not setting.worker.has and not setting.leased())
    await setting.adapters.close()


@pytest.mark.parametrize(
    "error", [errors.UnsupportedAdapter("no"), errors.WorkerDied("killed"), errors.Internal("?")]
)
async def test_a_load_that_fails_tells_all_who_wait_and_leaves_nothing(
    setting: Setting, error: errors.SllmError
) -> None:
    setting.worker.error = error
    spec = await setting.spec(0)
    failed = await asyncio.gather(
        *(setting.adapters.take(spec) for _ in range(3)), return_exceptions=True
    )
    assert [type(one) for one in failed] == [type(error)] * 3
    assert not setting.there()
    setting.worker.error = None
    (await setting.take(0)).release()
    await setting.adapters.close()
    assert setting.leased() == 0


async def test_a_pool_that_is_full_is_made_room_in(bench: Bench) -> None:
    """More adapters are allowed than the pool has room for."""
    setting = Setting(bench, most=50)
    held = await setting.take(0)
    for seed in range(1, 9):
        (await setting.take(seed)).release()
    assert "a0" in setting.there()
    assert "a8" in setting.there()
    held.release()
    await setting.adapters.close()
    assert setting.leased() == 0


async def test_whatever_is_asked_there_are_never_too_many_and_none_is_lost(bench: Bench) -> None:
    """A random life: requests come, some leave before their turn, and all others are served."""
    setting, draws, served = Setting(bench), random.Random(7), Counter[int]()
    specs = [await setting.spec(seed) for seed in range(8)]

    async def ask(seed: int) -> None:
        use = await setting.adapters.take(specs[seed])
        assert setting.worker.has[use.adapter_id] == specs[seed].name
        for _ in range(draws.randrange(5)):
            await asyncio.sleep(0)
            assert use.adapter_id in setting.worker.has, "it has left while it was in use"
        served[seed] += 1
        use.release()

    tasks = [asyncio.create_task(ask(draws.choice((0, 0, 0, 1, 1, *range(8))))) for _ in range(200)]
    for one in draws.sample(tasks, 20):
        await asyncio.sleep(0)
        one.cancel()
        setting.clock.advance(0.4)
    outcomes = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 60)
    failures = [one for one in outcomes if isinstance(one, Exception)]
    assert not failures
    cancelled = sum(isinstance(one, asyncio.CancelledError) for one in outcomes)
    assert sum(served.values()) == len(tasks) - cancelled
    assert setting.worker.most <= MOST
    await setting.adapters.close()
    assert setting.leased() == 0
    bench.store.check_integrity()


async def fill(setting: Setting) -> list[AdapterUse]:
    """Holds adapters until the pool has no room for another."""
    uses: list[AdapterUse] = []
    while True:
        try:
            uses.append(await setting.take(len(uses)))
        except errors.NoCapacity:
            return uses


async def test_a_load_that_nobody_wants_any_more_ends(bench: Bench) -> None:
    """Whatever it was at: also where the pool has no room, and nothing but itself could leave."""
    for turns in range(30):
        setting = Setting(bench, most=50)
        uses = await fill(setting)
        one = asyncio.create_task(setting.adapters.take(await setting.spec(15)))
        for _ in range(turns):
            await asyncio.sleep(0)
        one.cancel()
        await asyncio.gather(one, return_exceptions=True)
        for use in uses:
            use.release()
        await asyncio.wait_for(setting.adapters.close(), 10)
        assert setting.leased() == 0


async def test_who_waits_when_the_instance_ends_is_told_and_loads_nothing(
    setting: Setting,
) -> None:
    uses = [await setting.take(seed) for seed in range(MOST)]
    spec, background = await setting.spec(8), await setting.spec(9)
    waiting = [
        asyncio.create_task(setting.adapters.take(spec)),
        asyncio.create_task(setting.adapters.take(background, lambda: None)),
        asyncio.create_task(setting.adapters.take(background)),
    ]
    await settle()
    loads = setting.worker.loads
    await setting.adapters.close()
    outcomes = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 10)
    assert [type(one) for one in outcomes] == [errors.ShuttingDown] * 3
    with pytest.raises(errors.ShuttingDown):
        await setting.adapters.take(spec)
    assert setting.worker.loads == loads
    for use in uses:
        use.release()
    assert setting.leased() == 0


async def test_what_nobody_waits_for_gives_way(setting: Setting) -> None:
    awaited = [await setting.take(seed) for seed in range(MOST - 1)]
    ended: list[AdapterUse] = []
    use = await setting.adapters.take(await setting.spec(7), lambda: ended[0].release())
    ended.append(use)
    behind = asyncio.create_task(setting.adapters.take(await setting.spec(8), lambda: None))
    await settle()
    assert not behind.done(), "it takes nothing away"
    awaited.append(await asyncio.wait_for(setting.take(9), 10))
    assert setting.there() == {"a0", "a1", "a9"}
    assert not behind.done()
    for one in awaited:
        one.release()
    (await asyncio.wait_for(behind, 10)).release()
    await setting.adapters.close()
    assert setting.leased() == 0


async def test_a_full_pool_is_taken_from_what_nobody_waits_for(bench: Bench) -> None:
    setting = Setting(bench, most=50)
    given: list[AdapterUse] = []
    first = await setting.adapters.take(await setting.spec(20), lambda: given[0].release())
    given.append(first)
    uses = await fill(setting)
    assert "a20" not in setting.there()
    for use in uses:
        use.release()
    await setting.adapters.close()


async def test_what_is_converted_is_another_adapter(setting: Setting) -> None:
    """What a worker keeps of it is told by the name that it is loaded by."""
    plain = await setting.spec(0)
    for spec in (plain, replace(plain, dtype="bfloat16")):
        (await setting.adapters.take(spec)).release()
    assert len(set(setting.worker.has.values())) == 2
    await setting.adapters.close()
