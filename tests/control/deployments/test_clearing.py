"""What deployments leave on devices."""

from serverlessllm.v1 import node_service_pb2 as node_pb
from serverlessllm.v1 import types_pb2 as pb

from tests.control.clusters import Cluster
from tests.control.fake_node import FakeNode
from tests.support import assert_eventually


def evicted(node: FakeNode) -> list[tuple[str, int]]:
    calls = [call for call in node.calls if isinstance(call, node_pb.EvictRequest)]
    return [(call.digest, call.tier) for call in calls]


async def serve(cluster: Cluster, node: FakeNode, *names: str) -> str:
    """Deploys a model under these names, and has it served once, from the device."""
    for name in names:
        await cluster.caller.deploy(name)
    await cluster.caller.complete(names[0])
    (digest,) = {digest for digest, _ in node.copies}
    source = next(iter(node.copies.values())).sources[0]
    node.add_copy(source, pb.TIER_DEVICE)
    for instance in node.instances.values():
        node.set_state(instance, instance.state)
    return digest


async def test_what_nobody_uses_leaves_the_device_once_it_is_idle(
    cluster: Cluster, node: FakeNode
) -> None:
    digest = await serve(cluster, node, "tiny")
    assert node.copies[digest, pb.TIER_DEVICE].leased
    await cluster.caller.delete("tiny")
    await assert_eventually(lambda: (digest, pb.TIER_DEVICE) not in node.copies)
    assert not node.instances
    assert {tier for _, tier in evicted(node)} == {pb.TIER_DEVICE}
    assert (digest, pb.TIER_SSD) in node.copies, "it stays below"


async def test_what_another_deployment_uses_stays(cluster: Cluster, node: FakeNode) -> None:
    digest = await serve(cluster, node, "tiny", "twin")
    await cluster.caller.delete("tiny")
    await assert_eventually(lambda: not node.instances)
    await assert_eventually(lambda: not node.copies[digest, pb.TIER_DEVICE].leased)
    await cluster.caller.complete("twin")
    assert not evicted(node)


async def test_what_was_left_while_the_node_was_away_goes_when_it_joins(cluster: Cluster) -> None:
    node = FakeNode("n2")
    node.add_copy("file:///once", pb.TIER_DEVICE)
    await node.start(cluster.address)
    await assert_eventually(lambda: not node.copies)
    await node.die()
