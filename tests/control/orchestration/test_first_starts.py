"""First starts of models whose engine copies weights: nothing of them was measured yet."""

import pytest
from serverlessllm.v1 import cluster_service_pb2 as cluster_pb
from serverlessllm.v1 import node_service_pb2 as node_pb
from serverlessllm.v1 import types_pb2 as pb

from sllm import errors
from tests.control.clusters import Cluster
from tests.control.fake_node import MIB, FakeNode
from tests.support import assert_eventually

COPY, EXPECTED = 300 * MIB, 64 * MIB
ONE = COPY + EXPECTED


def has_room(node: FakeNode, capacity: int) -> None:
    """Has the node tell of so much memory for instances, and of models that are copied."""
    node.memory = pb.NodeMemory(
        total_bytes=1 << 40, capacity_bytes=capacity, instance_bytes=EXPECTED
    )
    node.script.model.private_bytes = COPY - 64 * MIB
    node.script.model.private_bytes_per_request = MIB
    node.send_delta()


async def told(cluster: Cluster) -> None:
    async def told() -> bool:
        return all(one.HasField("memory") for one in await cluster.caller.nodes())

    await assert_eventually(told)


def asked(node: FakeNode) -> list[node_pb.StartInstanceRequest]:
    return [one for one in node.calls if isinstance(one, node_pb.StartInstanceRequest)]


async def rejected(cluster: Cluster, name: str) -> str:
    request = cluster_pb.ExplainPlacementRequest(deployment=name)
    answer = await cluster.caller.ask("ExplainPlacement", request)
    return str([one.rejected for one in answer.candidates])


async def test_a_first_start_waits_for_room_beside_the_copies_of_another(
    cluster: Cluster, node: FakeNode
) -> None:
    has_room(node, 2 * ONE - 1)
    await told(cluster)
    node.script.before_ready.shut()
    await cluster.caller.deploy("a", "file:///a", min_replicas=1)
    await assert_eventually(lambda: node.script.before_ready.waiting == 1)
    await cluster.caller.deploy("b", "file:///b", min_replicas=1)
    assert "1 bytes short for the instance itself" in await rejected(cluster, "b")
    node.script.before_ready.open()
    await cluster.wait_for_instances(1)
    # It is ready, and not yet measured.
    assert "1 bytes short for the instance itself" in await rejected(cluster, "b")
    assert [one.deployment for one in asked(node)] == ["a"]
    assert [one.private_bytes for one in asked(node)] == [COPY]
    await cluster.caller.delete("a")
    await assert_eventually(lambda: [one.deployment for one in asked(node)] == ["a", "b"])


async def test_an_idle_instance_ends_for_the_copies_of_another(
    cluster: Cluster, node: FakeNode
) -> None:
    has_room(node, 2 * ONE - 1)
    await told(cluster)
    for name in ("a", "b"):
        await cluster.caller.deploy(name, f"file:///{name}")
        await cluster.caller.complete(name)
        assert [one.deployment for one in await cluster.caller.instances()] == [name]


async def test_both_start_where_both_have_room(cluster: Cluster, node: FakeNode) -> None:
    has_room(node, 2 * ONE)
    await told(cluster)
    for name in ("a", "b"):
        await cluster.caller.deploy(name, f"file:///{name}", min_replicas=1)
    await cluster.wait_for_instances(2)


async def test_what_is_known_of_copies_outlives_starts_and_the_control_plane(
    cluster: Cluster, node: FakeNode
) -> None:
    has_room(node, 2 * ONE)
    await told(cluster)
    await cluster.caller.deploy(keep_alive=0.0, max_concurrency=32)
    node.script.model.ClearField("private_bytes")  # as starts tell of the model
    await cluster.caller.complete()
    await cluster.restart_control()
    model = (await cluster.caller.deployment("tiny")).model
    assert model.digest
    await cluster.caller.complete()
    assert [one.private_bytes for one in asked(node)] == [COPY - 32 * MIB] * 2


async def test_a_model_whose_copies_fit_no_node_is_refused_with_the_numbers(
    cluster: Cluster, node: FakeNode
) -> None:
    has_room(node, ONE - 1)
    await told(cluster)
    numbers = f"{ONE} bytes of memory for an instance itself, {ONE - 1} beside"
    with pytest.raises(errors.ModelTooLarge, match=numbers):
        await cluster.caller.deploy()
    await cluster.caller.deploy(max_concurrency=63)
