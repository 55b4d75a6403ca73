"""WatchCluster: all of it first, then what changes, and never more than is kept."""

import asyncio
from typing import Any

import grpc
from serverlessllm.v1 import cluster_service_pb2 as cluster_pb
from serverlessllm.v1 import types_pb2 as pb

from sllm.clock import ManualClock
from sllm.control.operations.cluster_watch import _KEPT, ClusterWatch
from sllm.control.state.state import State
from sllm.control.types.reports import Full, Report
from sllm.control.types.views import ClusterDelta, ClusterState
from tests.control import shapes
from tests.control.clusters import SECONDS, Cluster
from tests.control.fake_node import FakeNode


class Watcher:
    """A reader that puts the state together again."""

    def __init__(self, cluster: Cluster) -> None:
        self._call: Any = cluster.caller.cluster.WatchCluster(
            cluster_pb.WatchClusterRequest(), timeout=SECONDS
        )
        self.kinds: list[str] = []
        self.revisions: list[int] = []
        self.nodes: dict[str, pb.Node] = {}
        self.instances: dict[str, cluster_pb.InstanceLoad] = {}
        self.deployments: dict[str, cluster_pb.DeploymentLoad] = {}

    async def read(self) -> None:
        message = await self._call.read()
        assert message is not grpc.aio.EOF
        self.kinds.append(str(message.WhichOneof("state")))
        self.revisions.append(message.revision)
        body = message.full if message.HasField("full") else message.delta
        self.nodes |= {one.node_id: one for one in body.nodes}
        self.instances |= {one.instance.instance_id: one for one in body.instances}
        self.deployments |= {one.deployment: one for one in body.deployments}
        if message.HasField("delta"):
            for gone, kept in (
                (body.gone_nodes, self.nodes),
                (body.gone_instances, self.instances),
                (body.gone_deployments, self.deployments),
            ):
                for key in gone:
                    del kept[key]

    async def until(self, check: Any) -> None:
        async with asyncio.timeout(SECONDS):
            while not check():
                await self.read()


async def test_a_watcher_sees_all_that_happens(cluster: Cluster, node: FakeNode) -> None:
    await cluster.caller.deploy()
    watcher = Watcher(cluster)
    await watcher.read()
    assert watcher.kinds == ["full"]
    assert list(watcher.nodes) == ["n1"]
    assert list(watcher.deployments) == ["tiny"]

    node.script.before_ready.shut()
    stream = await cluster.caller.generate(max_tokens=7).until("loading")
    await watcher.until(lambda: watcher.deployments["tiny"].queued_requests == 1)
    await watcher.until(lambda: watcher.deployments["tiny"].starting_instances == 1)
    node.script.before_finish.shut()
    node.script.before_ready.open()
    await watcher.until(lambda: watcher.deployments["tiny"].ready_instances == 1)
    await watcher.until(lambda: [one.in_flight for one in watcher.instances.values()] == [1])
    await watcher.until(lambda: [one.generated_tokens for one in watcher.instances.values()] == [7])
    node.script.before_finish.open()
    await stream.end()
    await watcher.until(lambda: [one.in_flight for one in watcher.instances.values()] == [0])

    await cluster.caller.delete("tiny")
    await watcher.until(lambda: not watcher.deployments and not watcher.instances)
    await cluster.caller.stream("DrainNode", cluster_pb.DrainNodeRequest(node_id="n1"))
    await watcher.until(lambda: watcher.nodes["n1"].draining)
    await cluster.lose_node("n1")
    await watcher.until(lambda: not watcher.nodes)
    assert set(watcher.kinds[1:]) == {"delta"}
    assert watcher.revisions == list(range(watcher.revisions[0], watcher.revisions[-1] + 1))


async def test_a_late_watcher_begins_with_all_there_is(cluster: Cluster, node: FakeNode) -> None:
    first = Watcher(cluster)
    await first.read()
    await cluster.caller.deploy()
    await first.until(lambda: first.deployments)
    second = Watcher(cluster)
    await second.read()
    assert second.kinds == ["full"]
    assert (second.nodes, second.deployments) == (first.nodes, first.deployments)


# --- slow readers -------------------------------------------------------------------------------


async def _change(state: State, clock: ManualClock, revision: int) -> None:
    """Makes one revision more."""
    facts = shapes.facts("n1", kv=revision)
    assert state.fleet.apply(Report("n1", revision, Full(facts)), now=0.0)
    clock.advance(1.0)
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_reader_that_cannot_follow_gets_all_of_it_again() -> None:
    state, clock = State(), ManualClock()
    watch = ClusterWatch(state, clock)
    reader = watch.follow()
    assert isinstance((await anext(reader)).body, ClusterState)
    await asyncio.sleep(0)
    for revision in range(1, 4):
        await _change(state, clock, revision)
    followed = [await anext(reader) for _ in range(3)]
    assert all(isinstance(one.body, ClusterDelta) for one in followed)
    assert [one.number for one in followed] == [1, 2, 3]

    for revision in range(4, 4 + 2 * _KEPT):
        await _change(state, clock, revision)
    again = await anext(reader)
    assert isinstance(again.body, ClusterState)
    assert again.body.nodes["n1"].view.facts.kv_capacity == again.number == 3 + 2 * _KEPT
    await reader.aclose()
    await watch.close()


async def test_nobody_looks_when_nobody_watches() -> None:
    state, clock = State(), ManualClock()
    watch = ClusterWatch(state, clock)
    reader = watch.follow()
    await anext(reader)
    await reader.aclose()
    await _change(state, clock, 1)
    reader = watch.follow()
    assert (await anext(reader)).number == 1
    await reader.aclose()
    await watch.close()
