"""Migrations as the control plane brings them about: real gRPC, and nodes that are scripted."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from serverlessllm.v1 import cluster_service_pb2 as cluster_pb
from serverlessllm.v1 import inference_service_pb2 as inference_pb
from serverlessllm.v1 import node_service_pb2 as node_pb
from serverlessllm.v1 import types_pb2 as pb

from sllm import errors, rpc
from sllm.control import server
from sllm.control.control_plane import ControlPlane
from sllm.control.types.migrations import Chosen, Moved
from tests.control.clusters import SECONDS, Cluster, Stream, cluster_of
from tests.control.fake_node import MIB, FakeNode
from tests.control.routing.test_failover import AMID, TOKENS, assert_whole, migrations, until_amid
from tests.support import assert_eventually


@pytest.fixture
def halfway(node: FakeNode) -> FakeNode:
    """A node that stands still after some tokens of a generation."""
    node.script.tokens_before_gate = AMID
    node.script.amid_tokens.shut()
    return node


async def migrate(cluster: Cluster, **fields: Any) -> list[cluster_pb.MigrateResponse]:
    call = cluster.caller.cluster.Migrate(cluster_pb.MigrateRequest(**fields), timeout=SECONDS)
    with rpc.typed_errors():
        return [response async for response in call]


def kinds(responses: list[cluster_pb.MigrateResponse]) -> list[str]:
    return list(dict.fromkeys(str(one.WhichOneof("event")) for one in responses))


async def running(cluster: Cluster, request_id: str = "mine") -> Stream:
    await cluster.caller.deploy()
    stream = cluster.caller.generate(max_tokens=TOKENS, request_id=request_id)
    return await until_amid(stream)


async def test_a_request_goes_on_where_it_is_sent(cluster: Cluster, halfway: FakeNode) -> None:
    stream = await running(cluster)
    other = await cluster.add_node("n2")
    told = await migrate(cluster, request_id="mine", to_node_id="n2")
    halfway.script.amid_tokens.open()
    await stream.end()

    assert_whole(stream)
    assert [one for one in kinds(told) if one != "loading"] == ["chosen", "round", "moved"]
    assert told[0].chosen.started
    (migrated,) = migrations(stream)
    assert (migrated.from_node_id, migrated.to_node_id) == ("n1", "n2")
    assert migrated.reason == inference_pb.MIGRATION_REASON_OPERATOR
    asked = [one for one in other.calls if isinstance(one, inference_pb.GenerateRequest)]
    assert list(asked[-1].continuation.token_ids) == list(range(AMID))
    assert halfway.cancelled == [], "the source has ended the stream itself"


async def test_what_it_takes_is_learned_from_what_has_moved(
    cluster: Cluster, halfway: FakeNode
) -> None:
    other = await cluster.add_node("n2")
    await cluster.caller.deploy(min_replicas=2, max_replicas=2)
    await cluster.wait_for_instances(2)
    estimates = []
    for number in range(2):
        for node in (halfway, other):
            node.script.tokens_before_gate = AMID
            node.script.amid_tokens.shut()
        name = f"r{number}"
        stream = await until_amid(cluster.caller.generate(max_tokens=TOKENS, request_id=name))
        estimates.append((await migrate(cluster, request_id=name))[0].chosen)
        for node in (halfway, other):
            node.script.amid_tokens.open()
        await stream.end()
        assert_whole(stream)
    assert not estimates[0].HasField("estimate"), "nothing has taught it yet"
    assert estimates[1].HasField("estimate")
    per_token = 0.5 / 10  # as the first was
    seconds = estimates[1].estimate.ToNanoseconds() / 1e9
    assert seconds >= AMID * per_token
    assert seconds == pytest.approx(round(seconds / per_token) * per_token)


async def test_an_instance_moves_with_all_its_requests_and_ends(
    cluster: Cluster, halfway: FakeNode
) -> None:
    streams = [await running(cluster, f"r{number}") for number in range(3)]
    (instance,) = halfway.instances
    await cluster.add_node("n2")
    told = await migrate(cluster, instance_id=instance)
    halfway.script.amid_tokens.open()
    for stream in streams:
        await stream.end()
        assert_whole(stream)
    assert {one.chosen.node_id for one in told if one.HasField("chosen")} == {"n2"}
    await assert_eventually(lambda: not halfway.instances)


async def test_a_ready_instance_elsewhere_is_used(cluster: Cluster, halfway: FakeNode) -> None:
    other = await cluster.add_node("n2")
    await cluster.caller.deploy(min_replicas=2, max_replicas=2)
    await cluster.wait_for_instances(2)
    other.script.tokens_before_gate = AMID
    other.script.amid_tokens.shut()
    stream = await until_amid(cluster.caller.generate(max_tokens=TOKENS, request_id="mine"))
    told = await migrate(cluster, request_id="mine")
    for node in (halfway, other):
        node.script.amid_tokens.open()
    await stream.end()
    assert_whole(stream)
    assert kinds(told)[0] == "chosen"
    assert not told[0].chosen.started


async def test_slots_are_held_before_anybody_is_told_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever hears of the choice may send a request at once: it would take the place."""
    planes: list[ControlPlane] = []

    class Known(ControlPlane):
        def __init__(self, *parts: Any) -> None:
            super().__init__(*parts)
            planes.append(self)

    monkeypatch.setattr(server, "ControlPlane", Known)
    async with cluster_of(tmp_path) as cluster:
        for name in ("n1", "n2"):
            node = await cluster.add_node(name)
            node.script.tokens_before_gate = AMID
            node.script.amid_tokens.shut()
        await cluster.caller.deploy(min_replicas=2, max_replicas=2, max_concurrency=1)
        await cluster.wait_for_instances(2)
        first = await until_amid(cluster.caller.generate(max_tokens=TOKENS, request_id="first"))
        (plane,) = planes
        moving = plane.migrator.migrate(plane.migrator.of_request("first", None))
        chosen = await anext(moving)
        assert isinstance(chosen, Chosen)
        second = await cluster.caller.generate(max_tokens=TOKENS, request_id="second").until(
            "queued"
        )
        told = [one async for one in moving]
        for node in cluster.nodes.values():
            node.script.amid_tokens.open()
        for stream in (first, second):
            await stream.end()
            assert_whole(stream)
        assert [type(one) for one in told][-1] is Moved
        assert second.receipt.node_id != chosen.node_id, "it had to wait for the place left"


async def test_what_stays_goes_on(cluster: Cluster, halfway: FakeNode) -> None:
    stream = await running(cluster)
    await cluster.add_node("n2")
    halfway.script.stays = True
    told = await migrate(cluster, request_id="mine", to_node_id="n2")
    halfway.script.amid_tokens.open()
    await stream.end()
    assert_whole(stream)
    assert told[-1].stayed.reason == "UNREACHABLE"
    assert not migrations(stream)


async def test_a_source_that_moved_more_than_it_gave_out_is_not_followed(
    cluster: Cluster, halfway: FakeNode
) -> None:
    """The stream fails over from what was relayed, wherever that leads."""
    stream = await running(cluster)
    await cluster.add_node("n2")
    halfway.script.tokens_unsent = 1
    await migrate(cluster, request_id="mine", to_node_id="n2")
    halfway.script.amid_tokens.open()
    await stream.end()
    assert_whole(stream)


async def test_a_destination_that_goes_meanwhile_changes_nothing(
    cluster: Cluster, halfway: FakeNode
) -> None:
    stream = await running(cluster)
    other = await cluster.add_node("n2")
    other.script.start_errors.append(errors.NoCapacity("full"))
    with pytest.raises(errors.SllmError):
        await migrate(cluster, request_id="mine", to_node_id="n2")
    halfway.script.amid_tokens.open()
    await stream.end()
    assert_whole(stream)


async def test_a_migration_that_could_not_start_is_not_held_against_the_node(
    cluster: Cluster, halfway: FakeNode
) -> None:
    """Where no request waited for the start, none is told of it, and the node may be tried."""
    stream = await running(cluster)
    other = await cluster.add_node("n2")
    other.script.start_errors.append(errors.StartFailed("not now"))
    with pytest.raises(errors.StartFailed):
        await migrate(cluster, request_id="mine", to_node_id="n2")
    await cluster.lose_node("n1")
    await stream.end()
    assert_whole(stream)


async def test_the_receipt_of_what_has_moved_tells_its_prefill(
    cluster: Cluster, halfway: FakeNode
) -> None:
    stream = await running(cluster)
    await cluster.add_node("n2")
    await migrate(cluster, request_id="mine", to_node_id="n2")
    halfway.script.amid_tokens.open()
    await stream.end()
    (prefill,) = (one for one in stream.receipt.phases if one.kind == pb.PHASE_KIND_PREFILL)
    begun, took = (one.ToNanoseconds() / 1e9 for one in (prefill.start, prefill.duration))
    first_token = stream.receipt.time_to_first_token.ToNanoseconds() / 1e9
    assert begun + took == pytest.approx(first_token, abs=0.002)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"request_id": "nobody", "to_node_id": "n2"}, errors.RequestNotFound),
        ({"instance_id": "nothing", "to_node_id": "n2"}, errors.InstanceNotFound),
        ({"request_id": "mine", "to_node_id": "nowhere"}, errors.NodeNotFound),
        ({"request_id": "mine", "to_node_id": "n1"}, errors.InvalidArgument),
        ({"request_id": "mine", "to_node_id": "small"}, errors.NoCapacity),
        ({"to_node_id": "n2"}, errors.InvalidArgument),
    ],
)
async def test_what_makes_no_sense_is_refused_and_nothing_happens(
    cluster: Cluster,
    halfway: FakeNode,
    fields: dict[str, str],
    expected: type[errors.SllmError],
) -> None:
    stream = await running(cluster)
    await cluster.add_node("n2")
    await cluster.add_node("small", dram_mib=1)
    with pytest.raises(expected):
        await migrate(cluster, **fields)
    halfway.script.amid_tokens.open()
    await stream.end()
    assert_whole(stream)
    assert not migrations(stream)
    assert not [one for one in halfway.calls if isinstance(one, node_pb.StartMigrationRequest)]


async def test_a_finished_request_is_not_found(cluster: Cluster, node: FakeNode) -> None:
    await cluster.caller.deploy()
    await cluster.caller.complete(request_id="done")
    await cluster.add_node("n2")
    with pytest.raises(errors.RequestNotFound):
        await migrate(cluster, request_id="done", to_node_id="n2")


async def drain(cluster: Cluster, node_id: str) -> None:
    request = cluster_pb.DrainNodeRequest(node_id=node_id)
    with rpc.typed_errors():
        async for _ in cluster.caller.cluster.DrainNode(request, timeout=SECONDS):
            pass


async def test_a_drain_moves_what_runs(cluster: Cluster, halfway: FakeNode) -> None:
    stream = await running(cluster)
    await cluster.add_node("n2")
    await drain(cluster, "n1")
    await stream.end()
    assert_whole(stream)
    (migrated,) = migrations(stream)
    assert migrated.to_node_id == "n2"
    assert migrated.reason == inference_pb.MIGRATION_REASON_DRAIN
    assert not halfway.instances


async def test_a_drain_lets_end_what_cannot_move(cluster: Cluster, halfway: FakeNode) -> None:
    stream = await running(cluster)
    await cluster.add_node("n2")
    halfway.script.stays = True
    draining = asyncio.create_task(drain(cluster, "n1"))
    await assert_eventually(lambda: halfway.count("StartMigration"))
    halfway.script.amid_tokens.open()
    await stream.end()
    await draining
    assert_whole(stream)
    assert not migrations(stream)


async def test_a_running_instance_makes_way_where_that_is_sooner(
    cluster: Cluster, node: FakeNode
) -> None:
    """`second` is near on n1 alone, where `first` runs, which is near on n2 as well."""
    other = await cluster.add_node("n2")
    first, second = "file:///models/first", "file:///models/second"
    for one in (node, other):
        one.links[0].bytes_per_second = MIB / 10  # 100 s for what comes from its source
        one.add_copy(first, pb.TIER_SSD)
    node.add_copy(second, pb.TIER_SSD)
    other.init_seconds = 0.02  # `first` starts on n1
    for one in (node, other):
        one.send_full()
    kv_tokens = 64 * 1024  # all that a node has
    await cluster.caller.deploy("first", first, kv_cache_tokens=kv_tokens)
    await cluster.caller.deploy("second", second, kv_cache_tokens=kv_tokens)
    await cluster.caller.complete("first")
    node.script.tokens_before_gate = AMID
    node.script.amid_tokens.shut()
    stream = await until_amid(cluster.caller.generate("first", max_tokens=TOKENS))
    assert other.instances == {}
    served = await cluster.caller.complete("second")
    await stream.end()

    assert served.receipt.node_id == "n1"
    assert_whole(stream)
    (migrated,) = migrations(stream)
    assert migrated.to_node_id == "n2"
    assert migrated.reason == inference_pb.MIGRATION_REASON_PLACEMENT


async def test_a_node_that_is_about_to_go_down_is_emptied(
    cluster: Cluster, halfway: FakeNode
) -> None:
    stream = await running(cluster)
    await cluster.add_node("n2")
    halfway.leaving = True
    halfway.send_full()
    await stream.end()
    assert_whole(stream)
    (migrated,) = migrations(stream)
    assert migrated.to_node_id == "n2"
    assert migrated.reason == inference_pb.MIGRATION_REASON_DRAIN
    assert (await cluster.caller.complete()).receipt.node_id == "n2"
    await cluster.lose_node("n1")
    assert not any(one.draining for one in await cluster.caller.nodes())


async def test_a_migration_without_an_outcome_is_an_error(
    cluster: Cluster, halfway: FakeNode
) -> None:
    stream = await running(cluster)
    await cluster.add_node("n2")
    halfway.script.migration_says_nothing = True
    with pytest.raises(errors.RequestNotFound, match="has finished or moved"):
        await migrate(cluster, request_id="mine", to_node_id="n2")
    halfway.script.amid_tokens.open()
    await stream.end()
    assert_whole(stream)
