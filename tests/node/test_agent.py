"""What the agent takes on, and in which order it may be asked."""

from dataclasses import replace
from pathlib import Path

import pytest

from sllm import errors
from sllm.clock import MonotonicClock
from sllm.node.agent import Agent
from sllm.node.config import INSTANCE_BYTES, MIB, OWN_BYTES, NodeConfig
from sllm.node.device.pool_device import PoolDevice
from sllm.node.instances.memory import MAX_INSTANCES
from sllm.node.instances.start import InstanceSpec
from sllm.node.instances.worker_client import EngineSpec
from sllm.node.instances.zygotes import Zygotes
from sllm.node.tiers.types import Tier
from tests.node.stores import Bench

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
    await agent.stop_instance("i", grace=0.0)
    with pytest.raises(errors.Cancelled, match="stopped before it began"):
        agent.start_instance(spec("i"))
    assert not agent.instances


async def test_a_start_that_is_asked_for_twice_is_joined(agent: Agent) -> None:
    first = agent.start_instance(spec("i"))
    assert agent.start_instance(spec("i")) is first
    with pytest.raises(errors.NoCapacity):
        agent.start_instance(spec("j", kv_bytes=1))
    await agent.stop_instance("i", grace=0.0)
    assert not agent.instances
    assert agent.kv_used_bytes == 0


async def test_instances_beyond_the_memory_are_refused(bench: Bench, tmp_path: Path) -> None:
    """Each takes memory for itself that neither pool nor KV budget has."""
    config = NodeConfig(
        "localhost:1",
        tmp_path,
        dram_bytes=16 * MIB,
        kv_bytes=KV_BYTES,
        engines=("transformers",),
    )
    beside = OWN_BYTES + 16 * MIB + KV_BYTES
    config = replace(config, memory_bytes=beside + 3 * INSTANCE_BYTES)
    device = PoolDevice(bench.store, KV_BYTES)
    agent = Agent(config, MonotonicClock(), bench.store, device, Zygotes(["transformers"]))
    for number in range(3):
        agent.start_instance(spec(f"i{number}", kv_bytes=1))
    assert agent.memory.used_bytes == agent.memory.capacity_bytes == 3 * INSTANCE_BYTES
    with pytest.raises(errors.NoCapacity, match=r"m takes about 64\.0 MiB .* 0 B of 192\.0 MiB"):
        agent.start_instance(spec("i3", kv_bytes=1))
    await agent.stop_instance("i0", grace=0.0)
    agent.start_instance(spec("i4", kv_bytes=1))
    await agent.close(grace=0.0)
    assert agent.memory.used_bytes == 0


async def test_instances_beyond_the_bound_are_refused(agent: Agent) -> None:
    agent.config = replace(agent.config, memory_bytes=1 << 50)
    for number in range(MAX_INSTANCES):
        agent.start_instance(spec(f"i{number}", kv_bytes=1))
    with pytest.raises(errors.NoCapacity, match="256 at most"):
        agent.start_instance(spec("one-more", kv_bytes=1))
    await agent.close(grace=0.0)


async def test_a_node_that_goes_down_takes_nothing_on(agent: Agent, bench: Bench) -> None:
    await agent.close(grace=0.0)
    with pytest.raises(errors.ShuttingDown):
        agent.start_instance(spec("i"))
    with pytest.raises(errors.ShuttingDown):
        await anext(agent.promote(bench.model(0), None, Tier.DRAM))
