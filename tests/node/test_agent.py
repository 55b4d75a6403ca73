"""What the agent takes on, and in which order it may be asked."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from make_models import make_model

from sllm import errors, machine
from sllm.clock import MonotonicClock
from sllm.node.agent import Agent
from sllm.node.api import wire
from sllm.node.config import INSTANCE_BYTES, MIB, OWN_BYTES, NodeConfig
from sllm.node.contents import Promotion
from sllm.node.device.pool_device import PoolDevice
from sllm.node.instances import zygote_process
from sllm.node.instances.memory import MAX_INSTANCES
from sllm.node.instances.private_memory import PrivateMemory
from sllm.node.instances.spec import EngineSpec, InstanceSpec
from sllm.node.instances.zygotes import Zygotes
from sllm.node.tiers.types import Tier
from tests.node.instances import pretender
from tests.node.stores import Bench
from tests.support import assert_eventually

KV_BYTES = 1 << 20
ENGINE = EngineSpec("transformers", None, None, None)


@pytest.fixture
def agent(bench: Bench, tmp_path: Path) -> Agent:
    """One whose zygote was never started: nothing here gets as far as to a worker."""
    config = NodeConfig("localhost:1", tmp_path)
    device = PoolDevice(bench.store, KV_BYTES)
    return Agent(config, MonotonicClock(), bench.store, device, Zygotes(["transformers"]))


def spec(instance_id: str, kv_bytes: int = KV_BYTES) -> InstanceSpec:
    return InstanceSpec(instance_id, "m", "/no/such/model", ENGINE, kv_bytes)


async def test_a_stop_that_overtakes_its_start_counts(agent: Agent) -> None:
    await agent.instances.stop("i", grace=0.0)
    with pytest.raises(errors.Cancelled, match="stopped before it began"):
        agent.instances.start(spec("i"))
    assert not agent.instances.by_id


async def test_a_start_that_is_asked_for_twice_is_joined(agent: Agent) -> None:
    first = agent.instances.start(spec("i"))
    assert agent.instances.start(spec("i")) is first
    with pytest.raises(errors.NoCapacity):
        agent.instances.start(spec("j", kv_bytes=1))
    await agent.instances.stop("i", grace=0.0)
    assert not agent.instances.by_id
    assert agent.instances.books.kv_used_bytes == 0


async def test_more_devices_than_there_are_are_refused(agent: Agent) -> None:
    count = machine.processors() + 1
    asked = replace(spec("i"), engine=replace(ENGINE, tensor_parallel=count))
    with pytest.raises(errors.NoCapacity, match=f"{count} devices together, and {count - 1} may"):
        agent.instances.start(asked)
    assert not agent.instances.by_id


def with_memory(bench: Bench, directory: Path, own_bytes: int) -> Agent:
    """One on a node that has so much for instances to take for themselves."""
    config = NodeConfig(
        "localhost:1",
        directory,
        dram_bytes=16 * MIB,
        kv_bytes=KV_BYTES,
        engines=("transformers",),
    )
    beside = OWN_BYTES + 16 * MIB + KV_BYTES
    config = replace(config, memory_bytes=beside + own_bytes)
    device = PoolDevice(bench.store, KV_BYTES)
    return Agent(config, MonotonicClock(), bench.store, device, Zygotes(["transformers"]))


async def test_instances_beyond_the_memory_are_refused(bench: Bench, tmp_path: Path) -> None:
    """Each takes memory for itself that neither pool nor KV budget has."""
    agent = with_memory(bench, tmp_path, 3 * INSTANCE_BYTES)
    for number in range(3):
        agent.instances.start(spec(f"i{number}", kv_bytes=1))
    assert (
        agent.instances.books.memory.used_bytes
        == agent.instances.books.memory.capacity_bytes
        == 3 * INSTANCE_BYTES
    )
    with pytest.raises(errors.NoCapacity, match=r"m takes about 64\.0 MiB .* 0 B of 192\.0 MiB"):
        agent.instances.start(spec("i3", kv_bytes=1))
    await agent.instances.stop("i0", grace=0.0)
    agent.instances.start(spec("i4", kv_bytes=1))
    await agent.close(grace=0.0)
    assert agent.instances.books.memory.used_bytes == 0


async def test_a_first_start_is_refused_that_has_no_room_for_its_copies(
    bench: Bench, tmp_path: Path
) -> None:
    """Before anything starts, and before anything was measured."""
    agent = with_memory(bench, tmp_path, 500 * MIB)
    first = replace(spec("first", kv_bytes=1), source="/no/such/first", private_bytes=300 * MIB)
    agent.instances.start(first)
    assert agent.instances.books.memory.used_bytes == INSTANCE_BYTES + 300 * MIB
    second = replace(spec("second", kv_bytes=1), private_bytes=300 * MIB)
    with pytest.raises(errors.NoCapacity, match=r"m takes about 364\.0 MiB .* 136\.0 MiB of 500"):
        agent.instances.start(second)
    assert list(agent.instances.by_id) == ["first"]
    agent.instances.start(replace(second, private_bytes=0))
    await agent.close(grace=0.0)


@pytest.mark.parametrize("there", [False, True])
async def test_the_copies_of_a_model_are_foretold_wherever_its_weights_are(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    """Before it has been anywhere, and once only its small files are beside what is held."""
    (tmp_path / "plan").write_text("describes")
    command = (sys.executable, pretender.__file__, str(tmp_path / "plan"))
    monkeypatch.setattr(zygote_process, "_COMMAND", command)
    config, device = NodeConfig("localhost:1", tmp_path), PoolDevice(bench.store, KV_BYTES)
    zygotes = Zygotes(["vllm", "transformers"])
    agent = Agent(config, MonotonicClock(), bench.store, device, zygotes)
    zygotes.start(bench.pool.fd)
    try:
        if there:
            await bench.leave(0, Tier.DRAM)
        for dtype, size in ((None, 4), ("bfloat16", 2)):
            found = await agent.inspector.inspect(bench.model(0), dtype, engine="vllm")
            numbers = found.size_bytes // size
            largest, embeddings = 60 * 57, 100 * 16
            foretold = (numbers + largest + embeddings) * size + 64 * MIB
            assert found.private == PrivateMemory(foretold, 16 * 100)
            message = wire.model_info(found)
            assert message.private_bytes == foretold
            assert message.private_bytes_per_request == 16 * 100
        plain = await agent.inspector.inspect(bench.model(0), None, engine="transformers")
        assert plain.private == PrivateMemory(0, 16 * 100)
        assert wire.model_info(plain).HasField("private_bytes")
    finally:
        await zygotes.close()


async def test_what_was_measured_on_another_engine_tells_nothing(agent: Agent) -> None:
    on_vllm = replace(spec("i"), engine=replace(ENGINE, engine="vllm"))
    assert on_vllm.kind != spec("i").kind
    assert on_vllm.kind == replace(on_vllm, deployment="other", instance_id="j").kind
    assert replace(on_vllm, identity="a").kind == replace(on_vllm, identity="a", source="/b").kind


async def test_instances_beyond_the_bound_are_refused(bench: Bench, tmp_path: Path) -> None:
    agent = with_memory(bench, tmp_path, 1 << 50)
    for number in range(MAX_INSTANCES):
        agent.instances.start(spec(f"i{number}", kv_bytes=1))
    with pytest.raises(errors.NoCapacity, match="256 at most"):
        agent.instances.start(spec("one-more", kv_bytes=1))
    await agent.close(grace=0.0)


async def test_a_node_that_goes_down_takes_nothing_on(agent: Agent, bench: Bench) -> None:
    await agent.close(grace=0.0)
    with pytest.raises(errors.ShuttingDown):
        agent.instances.start(spec("i"))
    with pytest.raises(errors.ShuttingDown):
        await anext(agent.contents.promote(Promotion(bench.model(0), None, Tier.DRAM)))


async def test_what_the_very_first_start_lacked_is_made_ready(bench: Bench, tmp_path: Path) -> None:
    """Although that start had to wait for its engine, and tells nothing of how long others take."""
    await bench.reopen(ssd_models=1000, pool_models=1000)
    config = NodeConfig("localhost:1", tmp_path, ready_made_bytes=0)
    device, zygotes = PoolDevice(bench.store, KV_BYTES), Zygotes(["transformers"])
    agent = Agent(config, MonotonicClock(), bench.store, device, zygotes)
    zygotes.start(bench.pool.fd)
    try:
        source = str(make_model("tiny-qwen2", tmp_path / "model"))
        instance = agent.instances.start(replace(spec("i"), source=source))
        async for _ in instance.follow_start():
            pass
        assert not agent.instances.init_times.times
        assert instance.running
        digest = instance.running.digest
        await assert_eventually(
            lambda: digest in [one.made_of for one in agent.contents.copies()], 60.0
        )
    finally:
        await agent.close(grace=0.0)
        await zygotes.close()
