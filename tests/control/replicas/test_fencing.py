"""Nodes hear of a leader when it comes to lead, and not only by its first order."""

from collections.abc import AsyncIterator

import pytest
from serverlessllm.v1 import node_service_pb2 as pb
from serverlessllm.v1.node_service_pb2_grpc import NodeServiceStub

from sllm import errors, rpc
from sllm.node.api.terms import ObeysLatest, Terms
from tests.control.fake_node import FakeNode
from tests.control.replicas.replicas import Replica, Replicas
from tests.support import assert_eventually

SECONDS = 10.0
NODE_SERVICE = "serverlessllm.v1.NodeService"


class Obeying(FakeNode):
    """A node that obeys the latest leader, as real ones do, and to which nothing was said yet."""

    async def come(self, at: Replica, listen: str = "127.0.0.1:0") -> None:
        await self.start(at.address, listen, [ObeysLatest(Terms(), [NODE_SERVICE])])

    async def report_to(self, other: Replica) -> None:
        await self.leave()
        self.begin_reports(other.address)

    async def refuses(self, term: int | None) -> str:
        """Why it does not take an order; empty if it does."""
        async with rpc.channel(self.address) as channel:
            order = NodeServiceStub(channel).StopInstance(
                pb.StopInstanceRequest(instance_id="none"),
                metadata=rpc.order_metadata(term),
                timeout=SECONDS,
            )
            try:
                with rpc.typed_errors():
                    await order
            except errors.StaleTerm as error:
                return str(error.metadata["term"])
        return ""


@pytest.fixture
async def node() -> AsyncIterator[Obeying]:
    node = Obeying("n1")
    yield node
    await node.die()


async def test_an_order_of_a_former_leader_is_refused_before_the_next_has_given_one(
    pair: Replicas, node: Obeying
) -> None:
    leader, follower = await pair.leader(), await pair.follower()
    await node.come(leader)
    await assert_eventually(lambda: node.refuses(None))
    term = int(await node.refuses(None))
    await node.report_to(follower)  # held there until that one leads
    await pair.remove(leader)
    await assert_eventually(lambda: node.refuses(term))
    assert int(await node.refuses(term)) > term
    assert not node.instances
    assert all(one == pb.StopInstanceRequest(instance_id="none") for one in node.calls)


async def test_a_node_that_has_forgotten_is_told_again(pair: Replicas, node: Obeying) -> None:
    """It was killed, and started again at its address before anybody missed it."""
    leader = await pair.leader()
    await node.come(leader)
    await assert_eventually(lambda: node.refuses(None))
    await node.die()
    await node.come(leader, node.address)
    await assert_eventually(lambda: node.refuses(None))
