"""Report streams: who is a member, and what the control plane believes of it."""

import time
from typing import Any

import pytest
from serverlessllm.v1 import fleet_service_pb2 as fleet_pb
from serverlessllm.v1 import types_pb2 as pb
from serverlessllm.v1.fleet_service_pb2_grpc import FleetServiceStub

from sllm import errors, rpc
from tests.control.clusters import Cluster
from tests.control.fake_node import MIB, FakeNode
from tests.support import assert_eventually


async def test_a_node_is_told_its_lease(cluster: Cluster, node: FakeNode) -> None:
    await assert_eventually(lambda: node.lease_seconds == 1.0)


async def test_deltas_change_what_they_name_and_leave_the_rest(
    cluster: Cluster, node: FakeNode
) -> None:
    node.add_copy("file:///a", pb.TIER_SSD)
    node.add_copy("file:///b", pb.TIER_SSD)

    async def digests() -> set[str]:
        (seen,) = await cluster.caller.nodes()
        return {copy.digest for copy in seen.copies}

    both = {"digest-of-file:///a", "digest-of-file:///b"}

    async def both_there() -> bool:
        return await digests() == both

    await assert_eventually(both_there)
    gone = pb.CheckpointCopy(digest="digest-of-file:///a", tier=pb.TIER_SSD)
    node.send_delta(copies=[gone])

    async def one_gone() -> bool:
        return await digests() == {"digest-of-file:///b"}

    await assert_eventually(one_gone)


async def test_a_control_plane_that_was_held_up_loses_no_node(
    cluster: Cluster, node: FakeNode
) -> None:
    """For longer than a lease: what the nodes have sent meanwhile waits to be read."""
    await assert_eventually(lambda: node.lease_seconds)
    before = node.revision
    _hold_up(2 * node.lease_seconds)
    copy = node.add_copy("file:///a", pb.TIER_SSD)

    async def seen() -> bool:
        views = await cluster.caller.nodes()
        return [one.digest for view in views for one in view.copies] == [copy]

    await assert_eventually(seen)
    assert node.revision == before + 1, "it had to tell everything anew"


def _hold_up(seconds: float) -> None:
    """Keeps everything in this process, the control plane and the node, from running."""
    time.sleep(seconds)


async def test_a_gap_is_answered_with_one_resync(cluster: Cluster, node: FakeNode) -> None:
    node.revision += 1
    node.send_delta()
    await assert_eventually(lambda: node.resyncs == 1)
    copy = node.add_copy("file:///a", pb.TIER_SSD)

    async def seen() -> bool:
        (view,) = await cluster.caller.nodes()
        return [one.digest for one in view.copies] == [copy]

    await assert_eventually(seen)
    assert node.resyncs == 1


async def test_a_newer_stream_of_a_node_replaces_the_older(
    cluster: Cluster, node: FakeNode
) -> None:
    await cluster.caller.deploy()
    full = fleet_pb.FullReport(
        node=pb.Node(node_id="n1", address=node.address, kv_capacity_bytes=7 * MIB)
    )
    request = fleet_pb.ReportRequest(node_id="n1", revision=1, full=full)
    await node.leave()
    async with rpc.channel(cluster.address) as channel:
        stub: Any = FleetServiceStub(channel)
        first, second = stub.Report(), stub.Report()
        await first.write(request)
        assert (await first.read()).HasField("ack")
        await second.write(request)
        assert (await second.read()).HasField("ack")
        with pytest.raises(errors.RequestIdInUse), rpc.typed_errors():
            await first.read()
        (seen,) = await cluster.caller.nodes()
        assert seen.kv_capacity_bytes == 7 * MIB
        second.cancel()
    await cluster.wait_for_nodes(0)


async def test_a_delta_that_comes_first_is_answered_with_resync(cluster: Cluster) -> None:
    async with rpc.channel(cluster.address) as channel:
        stub: Any = FleetServiceStub(channel)
        call = stub.Report()
        delta = fleet_pb.DeltaReport(node=pb.Node(node_id="n9", address="127.0.0.1:1"))
        await call.write(fleet_pb.ReportRequest(node_id="n9", revision=1, delta=delta))
        assert (await call.read()).HasField("resync")
        assert not await cluster.caller.nodes()
        call.cancel()
