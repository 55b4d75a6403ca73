"""Promotions on a real store whose callers leave, stay, or are turned away."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from sllm.errors import InvalidSource, ShuttingDown
from sllm.node.store.promotions import Promotions
from sllm.node.tiers.types import Tier
from sllm.node.transfers.loads import Tell
from sllm.node.transfers.work import Progress
from tests.node.stores import Bench, gate_on
from tests.support import assert_eventually


class Caller:
    """Promotes a model into the pool, and notes what it is told."""

    def __init__(self, bench: Bench, promotions: Promotions, *, give_up: bool = False) -> None:
        self.told: list[Progress] = []
        self._bench = bench
        self.task = asyncio.create_task(self._follow(promotions, give_up))

    async def _follow(self, promotions: Promotions, give_up: bool) -> None:
        async for progress in promotions.follow(self._promote, give_up=give_up):
            self.told.append(progress)

    async def _promote(self, tell: Tell) -> None:
        (await self._bench.promote(0, Tier.DRAM, tell)).release()

    async def leave(self) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])
        assert self.task.cancelled()


@pytest_asyncio.fixture
async def promotions() -> AsyncIterator[Promotions]:
    promotions = Promotions()
    yield promotions
    await promotions.close()


async def test_who_follows_hears_how_far_it_is(bench: Bench, promotions: Promotions) -> None:
    caller = Caller(bench, promotions)
    await caller.task
    assert caller.told[-1].loaded_bytes == caller.told[-1].total_bytes > 0
    assert bench.on(Tier.DRAM)
    assert not any(copy.leased for copy in bench.store.copies())


@pytest.mark.parametrize("give_up", [False, True])
async def test_it_goes_on_when_its_caller_leaves_unless_that_gives_up(
    bench: Bench, promotions: Promotions, give_up: bool
) -> None:
    with gate_on("imports") as gate:
        caller = Caller(bench, promotions, give_up=give_up)
        await assert_eventually(lambda: gate.begun)
        await caller.leave()
        gate.open()
        await assert_eventually(lambda: not any(copy.leased for copy in bench.store.copies()))
        await assert_eventually(lambda: bool(bench.on(Tier.DRAM)) is not give_up)
        await assert_eventually(lambda: bool(bench.pool.used_bytes) is not give_up)
    bench.store.check_integrity()


async def test_who_follows_gets_its_error(promotions: Promotions) -> None:
    async def fail(tell: Tell) -> None:
        raise InvalidSource("no model")

    with pytest.raises(InvalidSource, match="no model"):
        await anext(promotions.follow(fail, give_up=False))


async def test_closing_ends_all_and_tells_who_follows(bench: Bench, promotions: Promotions) -> None:
    with gate_on("imports") as gate:
        staying, leaving = Caller(bench, promotions), Caller(bench, promotions)
        await assert_eventually(lambda: gate.begun)
        await leaving.leave()
        await promotions.close()
        for refused in (staying, Caller(bench, promotions)):
            with pytest.raises(ShuttingDown):
                await refused.task
        gate.open()
        await assert_eventually(lambda: not bench.pool.used_bytes)
    assert not any(copy.leased for copy in bench.store.copies())
