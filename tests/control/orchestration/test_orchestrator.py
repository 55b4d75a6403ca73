"""Starts, room and failed starts: a real control plane, and nodes that are scripted."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from serverlessllm.v1 import types_pb2 as pb

from sllm import errors
from sllm.control.deployments.autoscaler import RAMP
from tests.control.clusters import Cluster
from tests.control.fake_node import FakeNode
from tests.support import assert_eventually

HALF = 40 * 1024
"""Tokens whose KV cache takes more than half of a fake node's budget."""


# --- replicas -----------------------------------------------------------------------------------


async def test_replicas_are_spread_over_nodes_before_two_share_one(cluster: Cluster) -> None:
    nodes = [await cluster.add_node(f"n{index}") for index in range(3)]
    await cluster.caller.deploy(min_replicas=5, max_replicas=5, kv_cache_tokens=64)
    await cluster.wait_for_instances(5)
    assert sorted(len(one.instances) for one in nodes) == [1, 2, 2]


async def test_of_many_replicas_a_few_start_at_a_time(cluster: Cluster, node: FakeNode) -> None:
    node.script.before_ready.shut()
    await cluster.caller.deploy(min_replicas=3 * RAMP, max_replicas=3 * RAMP, kv_cache_tokens=64)
    await assert_eventually(lambda: node.script.before_ready.waiting == RAMP)
    node.script.before_ready.open()
    await cluster.wait_for_instances(3 * RAMP)
    assert node.count("StartInstance") == 3 * RAMP


# --- room ---------------------------------------------------------------------------------------


async def test_an_idle_instance_makes_room_for_another_model(
    cluster: Cluster, node: FakeNode
) -> None:
    await cluster.caller.deploy("a", "file:///a", kv_cache_tokens=HALF)
    await cluster.caller.deploy("b", "file:///b", kv_cache_tokens=HALF)
    await cluster.caller.complete("a")
    await cluster.caller.complete("b")

    (instance,) = node.instances.values()
    assert instance.deployment == "b"
    assert node.most_kv_bytes <= 64 * 1024 * 1024


async def test_a_start_waits_until_its_victim_has_ended(cluster: Cluster, node: FakeNode) -> None:
    await cluster.caller.deploy("a", "file:///a", kv_cache_tokens=HALF)
    await cluster.caller.deploy("b", "file:///b", kv_cache_tokens=HALF)
    await cluster.caller.complete("a")
    node.script.before_stop.shut()
    stream = await cluster.caller.generate("b").until("queued")
    await assert_eventually(lambda: node.script.before_stop.waiting)
    assert node.count("StartInstance") == 1
    node.script.before_stop.open()
    await stream.end()


async def test_a_start_does_not_wait_for_an_end_whose_room_it_does_not_need(
    cluster: Cluster, node: FakeNode
) -> None:
    await cluster.caller.deploy("a", "file:///a", kv_cache_tokens=1024, keep_alive=0.0)
    await cluster.caller.deploy("b", "file:///b", kv_cache_tokens=1024)
    node.script.before_stop.shut()
    await cluster.caller.complete("a")
    await assert_eventually(lambda: node.script.before_stop.waiting)
    await cluster.caller.complete("b")
    assert node.script.before_stop.waiting
    node.script.before_stop.open()


async def test_an_instance_whose_node_could_not_be_reached_for_long_is_stopped_after_all(
    cluster: Cluster, node: FakeNode
) -> None:
    await cluster.caller.deploy("a", "file:///a", kv_cache_tokens=1024, keep_alive=0.0)
    node.script.stop_errors += [errors.NodeLost("no answer")] * 4
    await cluster.caller.complete("a")
    await assert_eventually(lambda: not node.instances)
    assert not node.script.stop_errors


async def test_the_least_recently_used_model_goes_first(cluster: Cluster, node: FakeNode) -> None:
    third = 20 * 1024
    for name in ("a", "b", "c", "d"):
        await cluster.caller.deploy(name, f"file:///{name}", kv_cache_tokens=third)
    for name in ("a", "b", "c", "a", "d"):
        await cluster.caller.complete(name)

    assert sorted(one.deployment for one in node.instances.values()) == ["a", "c", "d"]


async def test_a_model_that_is_always_busy_yields_to_one_that_waits(
    cluster: Cluster, node: FakeNode
) -> None:
    await cluster.caller.deploy("busy", "file:///a", kv_cache_tokens=HALF)
    await cluster.caller.deploy("patient", "file:///b", kv_cache_tokens=HALF)
    node.script.before_finish.shut()
    first = await cluster.caller.generate("busy").until("tokens")
    waiting = await cluster.caller.generate("patient").until("queued")

    async def draining() -> bool:
        states = [one.state for one in await cluster.caller.instances("busy")]
        return states == [pb.INSTANCE_STATE_DRAINING]

    await assert_eventually(draining)
    younger = await cluster.caller.generate("busy", request_id="younger").until("queued")
    assert "younger" not in node.served(), "it would keep the instance busy for ever"
    node.script.before_finish.open()
    await first.end()
    await waiting.end()
    await younger.end()


async def test_room_that_is_made_for_one_is_not_taken_by_a_younger_one(
    cluster: Cluster, node: FakeNode
) -> None:
    for name, tokens in (("busy", HALF), ("patient", HALF), ("small", 10 * 1024)):
        await cluster.caller.deploy(name, f"file:///{name}", kv_cache_tokens=tokens)
    node.script.before_finish.shut()
    busy = await cluster.caller.generate("busy").until("tokens")
    patient = await cluster.caller.generate("patient").until("queued")

    async def draining() -> bool:
        states = [one.state for one in await cluster.caller.instances("busy")]
        return states == [pb.INSTANCE_STATE_DRAINING]

    await assert_eventually(draining)
    small = await cluster.caller.generate("small").until("queued")
    await cluster.caller.nodes()  # by the time of the answer, the request has been looked at
    assert node.started() == ["busy"]
    node.script.before_finish.open()
    for stream in (busy, patient, small):
        await stream.end()
    assert sorted(node.started()) == ["busy", "patient", "small"]  # calls may overtake one another


async def test_nothing_is_placed_twice_on_the_same_room(cluster: Cluster, node: FakeNode) -> None:
    names = [f"m{index}" for index in range(8)]
    for name in names:
        await cluster.caller.deploy(name, f"file:///{name}", kv_cache_tokens=HALF)
    streams = await asyncio.gather(*(cluster.caller.complete(name) for name in names))

    assert all(stream.kinds[-1] == "finished" for stream in streams)
    assert node.most_kv_bytes <= 64 * 1024 * 1024


async def test_requests_spread_over_replicas_when_one_is_full(
    cluster: Cluster, node: FakeNode
) -> None:
    await cluster.caller.deploy(max_concurrency=1, max_replicas=2)
    node.script.before_finish.shut()
    streams = [cluster.caller.generate() for _ in range(3)]
    await streams[0].until("tokens")
    await cluster.wait_for_instances(2)
    node.script.before_finish.open()
    for stream in streams:
        await stream.end()
    assert node.count("StartInstance") == 2


async def test_a_start_goes_where_the_weights_are(cluster: Cluster) -> None:
    await cluster.add_node("n1")
    holder = await cluster.add_node("n2")
    holder.add_copy("file:///models/tiny", pb.TIER_SSD)
    holder.script.model.digest = "digest-of-file:///models/tiny"
    cluster.nodes["n1"].script.model.digest = "digest-of-file:///models/tiny"
    await cluster.caller.deploy()
    stream = await cluster.caller.complete()
    assert stream.receipt.node_id == "n2"


async def test_min_replicas_are_there_without_requests_and_stay(
    cluster: Cluster, node: FakeNode
) -> None:
    await cluster.caller.deploy(min_replicas=1, keep_alive=0.0)
    await cluster.wait_for_instances(1)
    stream = await cluster.caller.complete()
    assert not stream.receipt.cold
    await cluster.wait_for_instances(1)
    assert node.count("StopInstance") == 0


async def test_room_that_min_replicas_keeps_is_refused(cluster: Cluster, node: FakeNode) -> None:
    await cluster.caller.deploy("kept", "file:///a", min_replicas=1, kv_cache_tokens=HALF)
    await cluster.wait_for_instances(1)
    await cluster.caller.deploy("other", "file:///b", kv_cache_tokens=HALF)
    with pytest.raises(errors.NoCapacity, match="min_replicas"):
        await cluster.caller.complete("other")
    (instance,) = node.instances.values()
    assert instance.deployment == "kept"


async def test_replicas_that_the_nodes_never_have_room_for_are_told_of(
    cluster: Cluster, node: FakeNode
) -> None:
    told = await cluster.caller.deploy(min_replicas=3, max_replicas=3, kv_cache_tokens=HALF)
    assert "min_replicas is 3, and the 1 nodes there are would have room for 1" in told.message

    async def lacks() -> bool:
        found = await cluster.caller.deployment("tiny")
        return found.message.startswith("min_replicas is 3, and instances are 1: there is no room")

    await assert_eventually(lacks)
    await cluster.caller.deploy(min_replicas=1, max_replicas=3, kv_cache_tokens=HALF)
    await assert_eventually(told_nothing(cluster))


def told_nothing(cluster: Cluster) -> Callable[[], Awaitable[bool]]:
    async def check() -> bool:
        return not (await cluster.caller.deployment("tiny")).message

    return check


# --- starts that fail ---------------------------------------------------------------------------


async def test_a_start_that_fails_is_tried_on_another_node(cluster: Cluster) -> None:
    nodes = [await cluster.add_node("n1"), await cluster.add_node("n2")]
    nodes[0].script.start_errors.append(errors.CheckpointCorrupt("chunk 3 is not as written"))
    nodes[1].init_seconds = 10.0
    nodes[1].send_delta()
    await cluster.caller.deploy()
    stream = await cluster.caller.complete()
    assert stream.receipt.node_id == "n2"


async def test_a_report_that_comes_after_a_start_has_failed_does_not_begin_it_again(
    cluster: Cluster, node: FakeNode
) -> None:
    """The report is from before: it tells of an instance that is starting."""
    node.script.start_errors.append(errors.CheckpointCorrupt("chunk 3 is not as written"))
    node.script.before_ready.shut()
    await cluster.caller.deploy()
    stream = await cluster.caller.generate().until("loading")
    (starting,) = (
        pb.Instance.FromString(one.SerializeToString()) for one in node.instances.values()
    )
    node.script.before_ready.open()
    with pytest.raises(errors.CheckpointCorrupt):
        await stream.end()
    node.send_delta([starting])
    node.send_delta([pb.Instance(instance_id=starting.instance_id, state=pb.INSTANCE_STATE_GONE)])
    await cluster.wait_for_instances(0)
    assert node.count("StartInstance") == 1


async def test_a_start_that_fails_twice_fails_those_who_wait_with_the_reason(
    cluster: Cluster,
) -> None:
    for node_id in ("n1", "n2"):
        node = await cluster.add_node(node_id)
        node.script.start_errors.append(errors.CheckpointCorrupt("chunk 3 is not as written"))
    await cluster.caller.deploy()
    outcomes = await asyncio.gather(
        *(cluster.caller.complete() for _ in range(3)), return_exceptions=True
    )
    for outcome in outcomes:
        assert isinstance(outcome, errors.CheckpointCorrupt)
        assert "chunk 3" in str(outcome)
    await cluster.caller.complete()


async def test_on_the_only_node_a_failed_start_is_told_at_once(
    cluster: Cluster, node: FakeNode
) -> None:
    node.script.start_errors.append(errors.Internal("a fault"))
    await cluster.caller.deploy()
    with pytest.raises(errors.StartFailed, match="a fault"):
        await cluster.caller.complete()
    assert node.count("StartInstance") == 1
    await cluster.caller.complete()


async def test_min_replicas_are_tried_again_after_a_failed_start(
    cluster: Cluster, node: FakeNode
) -> None:
    node.script.start_errors.append(errors.Internal("a fault"))
    await cluster.caller.deploy(min_replicas=1)
    await cluster.wait_for_instances(1)
    assert node.count("StartInstance") == 2
