"""DrainNode and UndrainNode: no new work, what runs ends, and nobody is left without a node."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from serverlessllm.v1 import cluster_service_pb2 as cluster_pb
from serverlessllm.v1 import inference_service_pb2 as pb

from sllm import errors
from sllm.clock import MonotonicClock
from sllm.control.config import ControlConfig
from sllm.control.control_plane import ControlPlane
from sllm.control.operations.drains import stranded
from sllm.control.requests.tickets import Ticket
from sllm.control.types.calls import DONE_ALONE, Call
from sllm.control.types.reports import Full, Report
from tests.control import shapes
from tests.control.clusters import SECONDS, Cluster, stores_of
from tests.control.fake_node import FakeNode
from tests.support import assert_eventually


async def drain(cluster: Cluster, node_id: str = "n1", **fields: Any) -> list[Any]:
    request = cluster_pb.DrainNodeRequest(node_id=node_id, **fields)
    return await cluster.caller.stream("DrainNode", request)


async def undrain(cluster: Cluster, node_id: str = "n1", **fields: Any) -> None:
    await cluster.caller.ask(
        "UndrainNode", cluster_pb.UndrainNodeRequest(node_id=node_id, **fields)
    )


async def both_nodes(cluster: Cluster) -> tuple[FakeNode, FakeNode]:
    """The first is the one that is taken: it has the weights."""
    first = await cluster.add_node("n1")
    await cluster.caller.deploy()
    await assert_eventually(lambda: first.copies)
    return first, await cluster.add_node("n2")


async def test_running_requests_finish_and_new_ones_go_elsewhere(cluster: Cluster) -> None:
    first, second = await both_nodes(cluster)
    first.script.before_finish.shut()
    running = await cluster.caller.generate().until("tokens")
    call: Any = cluster.caller.cluster.DrainNode(
        cluster_pb.DrainNodeRequest(node_id="n1"), timeout=SECONDS
    )
    progress = (await call.read()).progress
    assert (progress.running_requests, progress.instances) == (1, 1)
    assert (await cluster.caller.node("n1")).draining
    assert not (await cluster.caller.node("n2")).draining

    await cluster.caller.complete()
    assert second.started() == ["tiny"]
    first.script.before_finish.open()
    await running.end()
    last = progress
    while not (answer := await call.read()).HasField("done"):
        last = answer.progress
    assert last == cluster_pb.DrainProgress()
    assert first.instances == {}


async def test_idle_instances_end_at_once(cluster: Cluster) -> None:
    first, _ = await both_nodes(cluster)
    await cluster.caller.complete()
    steps = await drain(cluster)
    assert [step.WhichOneof("event") for step in steps[-2:]] == ["progress", "done"]
    assert steps[-2].progress == cluster_pb.DrainProgress()
    assert first.instances == {}


async def test_a_start_under_way_is_made_elsewhere(cluster: Cluster) -> None:
    first, second = await both_nodes(cluster)
    first.script.before_ready.shut()
    waiting = await cluster.caller.generate().until("loading")
    draining = asyncio.create_task(drain(cluster))
    await waiting.end()
    assert second.started() == ["tiny"]
    first.script.before_ready.open()
    await draining


async def test_those_that_run_longer_than_the_grace_are_ended(cluster: Cluster) -> None:
    first, _ = await both_nodes(cluster)
    first.script.before_finish.shut()
    running = await cluster.caller.generate().until("tokens")
    steps = asyncio.create_task(drain(cluster, grace=Duration()))
    await assert_eventually(lambda: first.instances == {})
    first.script.before_finish.open()
    await running.end()
    assert (await steps)[-1].HasField("done")
    graces = [call.grace.ToSeconds() for call in first.calls if hasattr(call, "grace")]
    assert graces == [0]


async def test_the_last_node_with_work_is_not_drained_unless_forced(
    cluster: Cluster, node: FakeNode
) -> None:
    await cluster.caller.deploy()
    node.script.before_finish.shut()
    running = await cluster.caller.generate().until("tokens")
    with pytest.raises(errors.NodeNeeded, match=r"n1 is the last node.*tiny.*force") as caught:
        await drain(cluster)
    assert caught.value.code == errors.Code.FAILED_PRECONDITION
    assert caught.value.metadata["deployments"] == "tiny"
    assert not (await cluster.caller.node()).draining

    draining = asyncio.create_task(drain(cluster, force=True))
    await assert_eventually(lambda: node.count("StopInstance"))
    node.script.before_finish.open()
    await running.end()
    await draining


async def test_of_two_drains_at_once_one_finds_its_node_needed(tmp_path: Path) -> None:
    config, clock = ControlConfig(tmp_path), MonotonicClock()
    plane = ControlPlane(config, *stores_of(config), clock)
    state, drains = plane.state, plane.drains
    state.set_deployment(shapes.deployment("tiny"))
    for node_id in ("n1", "n2"):
        state.fleet.apply(Report(node_id, 1, Full(shapes.facts(node_id, kv=2000))), 1.0)
    request = pb.GenerateRequest(deployment="tiny", request_id="r")
    state.tickets["r"] = Ticket(request, None, clock, step_seconds=1.0)

    async def drain(node_id: str) -> None:
        async for progress in drains.drain(node_id, 0.0, False, Call(node_id, node_id, DONE_ALONE)):
            assert progress.done

    outcomes = await asyncio.gather(drain("n1"), drain("n2"), return_exceptions=True)
    assert [type(one) for one in outcomes] == [type(None), errors.NodeNeeded]
    await plane.close()


async def test_the_last_node_without_work_is_drained(cluster: Cluster, node: FakeNode) -> None:
    await cluster.caller.deploy()
    assert (await drain(cluster))[-1].HasField("done")
    with pytest.raises(errors.NoNodes, match=r"being drained; undrain one"):
        await cluster.caller.complete()
    await undrain(cluster)
    await cluster.caller.complete()


async def test_undraining_ends_the_drain(cluster: Cluster) -> None:
    first, _ = await both_nodes(cluster)
    first.script.before_finish.shut()
    running = await cluster.caller.generate().until("tokens")
    draining = asyncio.create_task(drain(cluster))
    await assert_eventually(lambda: first.count("StopInstance"))
    await undrain(cluster)
    with pytest.raises(errors.Cancelled, match="n1 was undrained"):
        await draining
    assert not (await cluster.caller.node("n1")).draining
    first.script.before_finish.open()
    await running.end()


async def test_a_drain_outlives_its_caller_and_a_restart(cluster: Cluster) -> None:
    first, second = await both_nodes(cluster)
    first.script.before_finish.shut()
    running = await cluster.caller.generate().until("tokens")
    call: Any = cluster.caller.cluster.DrainNode(cluster_pb.DrainNodeRequest(node_id="n1"))
    await call.read()
    call.cancel()
    running.call.cancel()
    await cluster.restart_control()
    assert (await cluster.caller.node("n1")).draining
    first.script.before_finish.open()
    await assert_eventually(lambda: first.instances == {})
    await cluster.caller.complete()
    assert second.served()


async def test_a_repeated_call_follows_the_drain_and_later_changes_nothing(
    cluster: Cluster,
) -> None:
    await both_nodes(cluster)
    assert (await drain(cluster, request_id="d"))[-1].HasField("done")
    assert (await drain(cluster, request_id="d"))[-1].HasField("done")
    await undrain(cluster, request_id="u")
    assert [one.WhichOneof("event") for one in await drain(cluster, request_id="d")] == ["done"]
    assert not (await cluster.caller.node("n1")).draining
    await drain(cluster)
    await undrain(cluster, request_id="u")
    assert (await cluster.caller.node("n1")).draining
    with pytest.raises(errors.RequestIdInUse):
        await drain(cluster, request_id="d", force=True)


async def test_a_node_that_is_lost_ends_its_drain(cluster: Cluster) -> None:
    first, _ = await both_nodes(cluster)
    first.script.before_finish.shut()
    await cluster.caller.generate().until("tokens")
    draining = asyncio.create_task(drain(cluster))
    await assert_eventually(lambda: first.count("StopInstance"))
    await cluster.lose_node("n1")
    with pytest.raises(errors.NodeLost, match="n1 is gone"):
        await draining
    await undrain(cluster)
    with pytest.raises(errors.NodeNotFound):
        await undrain(cluster)


# --- who would be stranded ----------------------------------------------------------------------


def test_a_deployment_is_stranded_when_no_other_node_is_large_enough() -> None:
    small = shapes.view(shapes.facts("small", dram=50))
    large = shapes.view(shapes.facts("large", dram=500))
    other = shapes.view(shapes.facts("other", dram=500))
    needs = [shapes.need("m", size=100), shapes.need("mini", size=10)]
    nodes = {"small": small, "large": large}
    assert stranded(nodes, {"large"}, needs) == ["m"]
    assert stranded(nodes, {"small"}, needs) == []
    assert stranded(nodes, {"small", "large"}, needs) == ["m", "mini"]
    assert stranded({**nodes, "other": other}, {"large"}, needs) == []


def test_one_that_no_node_could_serve_anyway_is_not_stranded() -> None:
    small = shapes.view(shapes.facts("small", dram=50))
    assert stranded({"small": small}, {"small"}, [shapes.need("m", size=100)]) == []


async def test_a_node_that_is_drained_while_it_goes_down_is_drained_when_it_is_back(
    cluster: Cluster, node: FakeNode
) -> None:
    node.leaving = True
    node.send_full()

    async def draining() -> bool:
        return bool((await cluster.caller.node("n1")).draining)

    await assert_eventually(draining)
    await drain(cluster)
    await node.leave()
    await cluster.wait_for_nodes(0)
    node.leaving = False
    node.begin_reports(cluster.address)
    await cluster.wait_for_nodes(1)
    assert await draining()
    await undrain(cluster)
    assert not await draining()
