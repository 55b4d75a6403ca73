"""Nodes, workers and control planes that are lost: a real control plane, and scripted nodes."""

import asyncio
from pathlib import Path

import pytest
from serverlessllm.v1 import types_pb2 as pb

from sllm import errors
from tests.control.clusters import Cluster, cluster_of
from tests.control.fake_node import FakeNode
from tests.support import assert_eventually

# --- parts that are lost ------------------------------------------------------------------------


async def test_a_node_lost_before_the_first_token_costs_a_pause(cluster: Cluster) -> None:
    node = await cluster.add_node("n1")
    await cluster.caller.deploy()
    node.script.before_tokens.shut()
    stream = await cluster.caller.generate().until("started")
    await cluster.add_node("n2")
    await cluster.lose_node("n1")
    await stream.end()

    assert stream.text == "0 1 2 "
    assert stream.receipt.node_id == "n2"
    assert [event.sequence for event in stream.events] == list(range(len(stream.events)))


async def test_a_node_lost_while_it_starts_an_instance(cluster: Cluster, node: FakeNode) -> None:
    await cluster.caller.deploy()
    node.script.before_ready.shut()
    stream = await cluster.caller.generate().until("loading")
    await cluster.add_node("n2")
    await cluster.lose_node("n1")
    await stream.end()
    assert stream.receipt.node_id == "n2"


async def test_without_any_node_requests_fail_after_a_while(
    cluster: Cluster, node: FakeNode
) -> None:
    await cluster.caller.deploy()
    await cluster.lose_node("n1")
    with pytest.raises(errors.NoNodes) as caught:
        await cluster.caller.complete()
    assert caught.value.retry_after


async def test_a_node_that_comes_in_time_serves_those_who_wait(tmp_path: Path) -> None:
    async with cluster_of(tmp_path, node_patience_seconds=20.0) as cluster:
        await cluster.add_node("n1")
        await cluster.caller.deploy()
        await cluster.lose_node("n1")
        stream = await cluster.caller.generate().until("queued")
        await cluster.add_node("n2")
        await stream.end()


async def test_a_node_that_falls_silent_is_lost_when_its_lease_ends(
    cluster: Cluster, node: FakeNode
) -> None:
    await cluster.caller.deploy()
    node.script.before_finish.shut()
    stream = await cluster.caller.generate().until("tokens")
    node.silent = True
    await cluster.wait_for_nodes(0)
    node.silent = False
    await cluster.wait_for_nodes(1)
    node.script.before_finish.open()
    await stream.end()
    assert stream.text == "0 1 2 "


async def test_a_worker_that_dies_before_the_first_token_costs_a_pause(
    cluster: Cluster, node: FakeNode
) -> None:
    await cluster.caller.deploy()
    await cluster.caller.complete()
    node.script.generate_errors.append(errors.WorkerDied("killed"))
    stream = await cluster.caller.complete()
    assert stream.text == "0 1 2 "
    assert stream.receipt.cold
    assert node.count("StartInstance") == 2


async def test_a_third_chance_is_the_last(cluster: Cluster, node: FakeNode) -> None:
    await cluster.caller.deploy()
    node.script.generate_errors += [errors.WorkerDied(why) for why in ("killed", "again", "ever")]
    with pytest.raises(errors.WorkerDied, match="ever"):
        await cluster.caller.complete()
    await cluster.caller.complete()


async def test_an_error_of_the_request_itself_is_told_and_the_instance_stays(
    cluster: Cluster, node: FakeNode
) -> None:
    await cluster.caller.deploy()
    node.script.generate_errors.append(errors.ContextExceeded("too long"))
    with pytest.raises(errors.ContextExceeded, match="too long"):
        await cluster.caller.complete()
    await cluster.caller.complete()
    assert node.count("StartInstance") == 1


async def test_an_instance_that_is_gone_is_started_anew(cluster: Cluster, node: FakeNode) -> None:
    await cluster.caller.deploy()
    await cluster.caller.complete()
    (instance,) = node.instances.values()
    node.set_state(instance, pb.INSTANCE_STATE_GONE)
    await cluster.wait_for_instances(0)
    stream = await cluster.caller.complete()
    assert stream.receipt.cold


# --- restarts -----------------------------------------------------------------------------------


async def test_a_restarted_control_plane_adopts_what_runs(cluster: Cluster, node: FakeNode) -> None:
    await cluster.caller.deploy()
    await cluster.caller.complete()
    await cluster.restart_control()
    stream = await cluster.caller.complete()

    assert not stream.receipt.cold
    assert node.count("StartInstance") == 1


async def test_a_restarted_control_plane_joins_what_starts(
    cluster: Cluster, node: FakeNode
) -> None:
    await cluster.caller.deploy()
    node.script.before_ready.shut()
    stream = await cluster.caller.generate().until("loading")
    ended = asyncio.create_task(stream.end())
    await cluster.stop_control()
    with pytest.raises(errors.ShuttingDown):
        await ended
    await cluster.start()
    await cluster.wait_for_nodes(1)
    await assert_eventually(lambda: node.count("StartInstance") == 2)
    again = await cluster.caller.generate().until("loading")
    node.script.before_ready.open()
    await again.end()
    assert len(node.instances) == 1


async def test_an_adopted_instance_ends_after_its_keep_alive(
    cluster: Cluster, node: FakeNode
) -> None:
    await cluster.caller.deploy(keep_alive=0.3)
    await cluster.caller.complete()
    await cluster.restart_control()
    await assert_eventually(lambda: not node.instances)


async def test_a_deleted_deployment_ends_its_requests_and_instances(
    cluster: Cluster, node: FakeNode
) -> None:
    await cluster.caller.deploy(max_concurrency=1)
    node.script.before_finish.shut()
    running = await cluster.caller.generate().until("tokens")
    queued = await cluster.caller.generate().until("queued")
    await cluster.caller.delete("tiny")
    with pytest.raises(errors.Cancelled):
        await running.end()
    with pytest.raises(errors.DeploymentNotFound):
        await queued.end()
    await assert_eventually(lambda: not node.instances)


async def test_a_deployment_deleted_while_it_starts_leaves_nothing(
    cluster: Cluster, node: FakeNode
) -> None:
    await cluster.caller.deploy()
    node.script.before_ready.shut()
    stream = await cluster.caller.generate().until("loading")
    await cluster.caller.delete("tiny")
    with pytest.raises(errors.DeploymentNotFound):
        await stream.end()
    node.script.before_ready.open()
    await assert_eventually(lambda: not node.instances)
