"""WatchCluster: all of it first, then what changes, and never more than is kept."""

import asyncio
from typing import Any

import grpc
import pytest
from serverlessllm.v1 import cluster_service_pb2 as cluster_pb
from serverlessllm.v1 import types_pb2 as pb

from sllm import errors
from sllm.clock import ManualClock
from sllm.control.operations.cluster_watch import _KEPT, ClusterWatch
from sllm.control.state.state import ENDED_KEPT, State
from sllm.control.types.reports import Full, Report
from sllm.control.types.views import ClusterDelta, ClusterState, EndedRequest
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
        self.ended: list[cluster_pb.EndedRequest] = []

    async def read(self) -> None:
        message = await self._call.read()
        assert message is not grpc.aio.EOF
        self.kinds.append(str(message.WhichOneof("state")))
        self.revisions.append(message.revision)
        body = message.full if message.HasField("full") else message.delta
        self.nodes |= {one.node_id: one for one in body.nodes}
        self.instances |= {one.instance.instance_id: one for one in body.instances}
        self.deployments |= {one.deployment: one for one in body.deployments}
        self.ended += body.ended_requests
        if message.HasField("delta"):
            for gone, kept in (
                (body.gone_nodes, self.nodes),
                (body.gone_instances, self.instances),
                (body.gone_deployments, self.deployments),
            ):
                for key in gone:
                    del kept[key]

    def all(self) -> list[cluster_pb.InstanceLoad]:
        return list(self.instances.values())

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


async def test_a_watcher_sees_how_far_starts_are(cluster: Cluster, node: FakeNode) -> None:
    await cluster.caller.deploy()
    watcher = Watcher(cluster)
    node.script.before_ready.shut()
    stream = await cluster.caller.generate().until("loading")
    await watcher.until(lambda: [one.HasField("loading") for one in watcher.all()] == [True])
    (start,) = watcher.all()
    assert start.loading.total_bytes == node.script.model.size_bytes
    assert start.loading.HasField("estimated_remaining")
    node.script.before_ready.open()
    await watcher.until(lambda: [one.HasField("loading") for one in watcher.all()] == [False])
    await stream.end()


async def test_a_watcher_sees_how_requests_have_gone(cluster: Cluster, node: FakeNode) -> None:
    await cluster.caller.deploy()
    await cluster.caller.complete(request_id="before", max_tokens=7)
    watcher = Watcher(cluster)
    await watcher.read()
    assert [one.request_id for one in watcher.ended] == ["before"]
    node.script.generate_errors = [errors.Internal("it broke")]
    with pytest.raises(errors.Internal):
        await cluster.caller.complete(request_id="broken")
    await cluster.caller.complete(request_id="after", max_tokens=5)
    await watcher.until(lambda: len(watcher.ended) == 3)
    told = [(one.request_id, one.outcome, one.generated_tokens) for one in watcher.ended]
    assert told == [("before", "OK", 7), ("broken", "INTERNAL", 0), ("after", "OK", 5)]
    assert [one.receipt.cold for one in watcher.ended] == [True, False, False]
    assert not watcher.ended[1].HasField("receipt")
    assert all(one.duration.ToNanoseconds() > 0 for one in watcher.ended)


async def test_a_watcher_sees_what_moves(cluster: Cluster, node: FakeNode) -> None:
    await cluster.caller.deploy(max_replicas=2)
    node.script.tokens_before_gate = 1
    node.script.amid_tokens.shut()
    node.script.before_migration.shut()
    stream = await cluster.caller.generate(max_tokens=5).until("tokens")
    await cluster.add_node("n2")
    watcher = Watcher(cluster)
    (source,) = await cluster.caller.instances()
    request = cluster_pb.MigrateRequest(instance_id=source.instance_id)
    moving = asyncio.create_task(cluster.caller.stream("Migrate", request))
    await watcher.until(
        lambda: any(one.moving_to for one in watcher.all()),
    )
    (destination,) = watcher.instances[source.instance_id].moving_to
    assert watcher.instances[destination].instance.node_id == "n2"
    node.script.before_migration.open()
    await moving
    await stream.end()
    await watcher.until(lambda: not any(one.moving_to for one in watcher.all()))


async def test_of_many_requests_the_latest_are_told() -> None:
    state, clock = State(), ManualClock()
    watch = ClusterWatch(state, clock)
    state.ended.extend(_ended(f"{number}") for number in range(2 * ENDED_KEPT))
    reader = watch.follow()
    first = (await anext(reader)).body
    assert [int(one.request_id) for one in first.ended] == list(range(ENDED_KEPT, 2 * ENDED_KEPT))
    await asyncio.sleep(0)
    state.ended.append(_ended("next"))
    await _change(state, clock, 1)
    assert [one.request_id for one in (await anext(reader)).body.ended] == ["next"]
    await reader.aclose()
    await watch.close()


def _ended(request_id: str) -> EndedRequest:
    return EndedRequest(request_id, "tiny", 1.0, 1.0, "OK", 1, None)


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
