"""Instances that compute layers for other nodes."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
from make_models import make_model

from sllm import errors
from sllm.clock import MonotonicClock
from sllm.node.device.pool_device import PoolDevice
from sllm.node.instances.instance import Instance, InstanceState
from sllm.node.instances.lending import LayersWish, Lending
from sllm.node.instances.spec import EngineSpec, InstanceSpec
from sllm.node.instances.watchdog import Patience
from sllm.node.instances.zygote_client import Zygote
from sllm.node.tiers.first_use import FirstUse
from sllm.node.tiers.types import Tier
from tests.node.instances.test_early_starts import Node
from tests.node.stores import Bench
from tests.support import assert_eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")

CLOCK = MonotonicClock()
KV_BYTES = 1 << 20


class Lender(Node):
    """A node that has a model on its disk, and lends its layers."""

    def __init__(self, bench: Bench, zygote: Zygote, model: Path) -> None:
        super().__init__(bench, zygote, model)
        self.lending = Lending(bench.store, self._begin_lent)

    def _begin_lent(self, spec: InstanceSpec, layers: range) -> Instance:
        instance = Instance(spec, CLOCK, lambda _: None, Patience())
        devices = PoolDevice(self.bench.store, KV_BYTES)
        instance.begin(self.bench.store, devices, self.launch, early=True, lent=layers)
        return instance

    async def wish(self) -> LayersWish:
        manifest = await self.manifest()
        engine = EngineSpec("transformers", None, 256, None, pack=True)
        tensors = tuple(range(len(manifest.tensors)))
        use = FirstUse(tensors, 0)
        source, digest = str(self.model), manifest.digest
        return LayersWish("m", source, "", engine, KV_BYTES, digest, range(1, 3), use)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def lender(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Lender]:
    directory = tmp_path_factory.mktemp("lender")
    make_model("tiny-llama", directory / "model")
    bench = Bench(directory)
    await bench.open(ssd_models=400, pool_models=150)
    zygote = Zygote("transformers")
    zygote.start(bench.pool.fd)
    yield Lender(bench, zygote, directory / "model")
    await zygote.close()
    await bench.close()


async def test_a_worker_lasts_as_long_as_it_is_needed(lender: Lender) -> None:
    async with lender.lending.worker(await lender.wish()) as worker:
        (instance,) = lender.lending.instances.values()
        assert instance.ready_worker() is worker
    assert instance.state is InstanceState.GONE
    assert not lender.lending.instances
    await lender.has_nothing_left()


async def test_it_gives_way_to_the_nodes_own_work(lender: Lender) -> None:
    given_way = asyncio.Event()

    async def lend() -> None:
        async with lender.lending.worker(await lender.wish()) as worker:
            given_way.set()
            await worker.gone
            raise errors.Unreachable("as of a call whose worker has gone")

    lending = asyncio.create_task(lend())
    await asyncio.wait_for(given_way.wait(), 30.0)
    lender.lending.give_way()
    assert not lender.lending.instances, "its room counts as free"
    assert await lender.lending.has_given_way()
    assert not await lender.lending.has_given_way()
    with pytest.raises(errors.NoCapacity, match="work of its own"):
        await lending
    await lender.has_nothing_left()


async def test_it_gives_way_before_it_has_begun(lender: Lender) -> None:
    async def lend() -> None:
        async with lender.lending.worker(await lender.wish()):
            pass

    lending = asyncio.create_task(lend())
    await assert_eventually(lambda: bool(lender.lending.instances), 30.0)
    lender.lending.give_way()
    with pytest.raises(errors.NoCapacity, match="work of its own"):
        await lending
    assert not lender.lending.instances
    await lender.has_nothing_left()


async def test_nothing_is_imported_for_others(lender: Lender, tmp_path: Path) -> None:
    make_model("tiny-llama", tmp_path / "other")
    wish = replace(await lender.wish(), source=str(tmp_path / "other"))
    with pytest.raises(errors.CheckpointNotFound):
        async with lender.lending.worker(wish):
            pass
    assert not lender.lending.instances


async def test_who_asks_for_what_is_not_here_is_told_so(lender: Lender) -> None:
    wish = await lender.wish()
    with pytest.raises(errors.CheckpointNotFound):
        async with lender.lending.worker(replace(wish, digest="0" * 32)):
            pass
    await lender.bench.store.evict(wish.digest, Tier.DRAM)
    broken = FirstUse((0, 0), 0)
    copy = lender.bench.store.first_uses
    known = copy.of(wish.digest)
    assert known, "it was told by the first who asked"
    async with lender.lending.worker(replace(wish, first_use=broken)):
        assert copy.of(wish.digest) == known
    await lender.has_nothing_left()
