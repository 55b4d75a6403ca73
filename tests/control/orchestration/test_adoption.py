"""Instances that no deployment explains are kept for a while, told of, and adopted."""

import asyncio
from pathlib import Path

from serverlessllm.v1 import types_pb2 as pb

from tests.control.clusters import Cluster, cluster_of
from tests.control.fake_node import FakeNode
from tests.support import assert_eventually

HALF = 40 * 1024
"""Tokens whose KV cache takes more than half of a fake node's budget."""


def remove_state(directory: Path) -> None:
    """Removes what a control plane has stored there."""
    for file in directory.glob("state.db*"):
        file.unlink()


async def lose_state(cluster: Cluster, directory: Path) -> None:
    """Restarts the control plane on an empty directory."""
    await cluster.stop_control()
    remove_state(directory)
    await cluster.start()
    await cluster.wait_for_nodes(len(cluster.nodes))


async def the_orphan(cluster: Cluster) -> pb.Instance:
    await cluster.wait_for_instances(1)
    (instance,) = await cluster.caller.instances()
    assert instance.HasField("orphan_until")
    return instance


async def test_they_are_kept_and_adopted_when_their_deployment_is_made_again(
    cluster: Cluster, node: FakeNode, tmp_path: Path
) -> None:
    await cluster.caller.deploy()
    await cluster.caller.complete()
    await lose_state(cluster, tmp_path)
    orphan = await the_orphan(cluster)
    assert not node.count("StopInstance")
    await cluster.caller.deploy()
    (adopted,) = await cluster.caller.instances()
    assert adopted.instance_id == orphan.instance_id
    assert not adopted.HasField("orphan_until")
    stream = await cluster.caller.complete()
    assert stream.receipt.instance_id == orphan.instance_id
    assert node.count("StartInstance") == 1


async def test_they_end_when_their_time_is_up(tmp_path: Path) -> None:
    async with cluster_of(tmp_path, orphan_grace_seconds=1.0) as cluster:
        node = await cluster.add_node("n1")
        await cluster.caller.deploy()
        await cluster.caller.complete()
        await lose_state(cluster, tmp_path)
        await assert_eventually(lambda: not node.instances)


async def test_they_end_when_their_deployment_comes_back_with_another_checkpoint(
    cluster: Cluster, node: FakeNode, tmp_path: Path
) -> None:
    await cluster.caller.deploy()
    await cluster.caller.complete()
    await lose_state(cluster, tmp_path)
    orphan = await the_orphan(cluster)
    node.script.model.digest = "of-another"
    await cluster.caller.deploy()
    await assert_eventually(lambda: orphan.instance_id not in node.instances)


async def test_they_make_room_before_all_others(
    cluster: Cluster, node: FakeNode, tmp_path: Path
) -> None:
    await cluster.caller.deploy("a", "file:///a", kv_cache_tokens=HALF)
    await cluster.caller.complete("a")
    await lose_state(cluster, tmp_path)
    await the_orphan(cluster)
    await cluster.caller.deploy("b", "file:///b", kv_cache_tokens=HALF)
    await cluster.caller.complete("b")
    assert {one.deployment for one in node.instances.values()} == {"b"}


async def test_what_was_deleted_while_its_node_was_away_ends_at_once(
    cluster: Cluster, node: FakeNode
) -> None:
    await cluster.caller.deploy()
    await cluster.caller.complete()
    await node.leave()
    await cluster.wait_for_nodes(0)
    await cluster.caller.delete("tiny")
    node.begin_reports(cluster.address)
    await assert_eventually(lambda: not node.instances)


async def test_what_failed_over_to_an_orphans_deployment_is_read_on(
    cluster: Cluster, node: FakeNode, tmp_path: Path
) -> None:
    """What it generates is not lost with the state: its caller reads on once it is adopted."""
    await cluster.caller.deploy()
    await cluster.caller.complete()
    (instance,) = node.instances.values()
    instance.unread_request_ids[:] = ["mine"]
    await lose_state(cluster, tmp_path)
    await the_orphan(cluster)
    await cluster.caller.deploy()
    stream = await cluster.caller.complete(request_id="mine", resume_from_sequence=1)
    assert stream.receipt.instance_id == instance.instance_id


async def test_what_a_node_runs_that_joins_late_is_not_started_again(tmp_path: Path) -> None:
    async with cluster_of(tmp_path, lease_seconds=3.0) as cluster:  # for which it is waited
        node = await cluster.add_node("n1")
        late = await cluster.add_node("n2")
        await cluster.caller.deploy(min_replicas=2, max_replicas=2)
        await cluster.wait_for_instances(2)
        assert len(late.instances) == len(node.instances) == 1
        await cluster.stop_control()
        await late.leave()
        await cluster.start()
        await cluster.wait_for_nodes(1)
        await asyncio.sleep(0.2)
        late.begin_reports(cluster.address)
        await cluster.wait_for_instances(2)
        assert [one.count("StartInstance") for one in (node, late)] == [1, 1]
        await late.leave()
        await assert_eventually(lambda: node.count("StartInstance") == 2)  # it has not come back
        late.begin_reports(cluster.address)
