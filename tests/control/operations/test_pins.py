"""Pin, Unpin and Prefetch: what stays where, for how long, and over which faults."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from serverlessllm.v1 import cluster_service_pb2 as cluster_pb
from serverlessllm.v1 import types_pb2 as pb

from sllm import errors
from sllm.clock import MonotonicClock
from sllm.control.cluster.tiers import Tier
from sllm.control.config import ControlConfig
from sllm.control.control_plane import ControlPlane
from sllm.control.types.calls import UNASKED, Call
from sllm.control.types.pins import Pin, Place
from sllm.control.types.reports import Full, Report
from sllm.control.wire.operations import PINNED
from tests.control import shapes
from tests.control.clusters import Cluster, stores_of
from tests.control.fake_node import MIB, FakeNode
from tests.support import assert_eventually

TINY = "digest-of-file:///models/tiny"
LOOP = "pin pin/tiny/DRAM"


def pin_of(**fields: Any) -> cluster_pb.PinRequest:
    chosen = {"deployment": "tiny", "tier": pb.TIER_DRAM, "node_id": "n1", **fields}
    return cluster_pb.PinRequest(**chosen)


def prefetch_of(**fields: Any) -> cluster_pb.PrefetchRequest:
    what = {} if "source" in fields else {"deployment": "tiny"}
    return cluster_pb.PrefetchRequest(**{"tier": pb.TIER_DRAM, **what, **fields})


async def pin(cluster: Cluster, **fields: Any) -> list[cluster_pb.PinResponse]:
    return await cluster.caller.stream("Pin", pin_of(**fields))


async def unpin(cluster: Cluster, **fields: Any) -> list[cluster_pb.PinnedCheckpoint]:
    request = cluster_pb.UnpinRequest(**{"deployment": "tiny", **fields})
    return list((await cluster.caller.ask("Unpin", request)).unpinned)


async def prefetch(cluster: Cluster, **fields: Any) -> list[cluster_pb.PrefetchResponse]:
    return await cluster.caller.stream("Prefetch", prefetch_of(**fields))


async def told_holds(cluster: Cluster, *hold_ids: str) -> bool:
    """Whether the only node's reports have told of these."""
    copies = (await cluster.caller.node()).copies
    return [one.hold_id for copy in copies for one in copy.holds] == list(hold_ids)


# --- pins ---------------------------------------------------------------------------------------


async def test_a_pin_is_in_force_when_it_is_done(cluster: Cluster, node: FakeNode) -> None:
    await cluster.caller.deploy()
    steps = await pin(cluster)
    assert [step.WhichOneof("event") for step in steps[:-1]] == ["loading"] * (len(steps) - 1)
    assert steps[-1].done == cluster_pb.PinnedCheckpoint(
        deployment="tiny", tier=pb.TIER_DRAM, node_id="n1"
    )
    assert node.holds() == {"pin/tiny/DRAM": (TINY, pb.TIER_DRAM)}
    await assert_eventually(lambda: told_holds(cluster, "pin/tiny/DRAM"))


async def test_a_pin_with_a_ttl_says_when_it_ends(cluster: Cluster, node: FakeNode) -> None:
    await cluster.caller.deploy()
    done = (await pin(cluster, ttl=Duration(seconds=3600)))[-1].done
    assert done.HasField("expires_at")
    (call,) = [one for one in node.calls if getattr(one, "hold_id", "")]
    assert 3590 < call.hold_ttl.ToSeconds() <= 3600  # type: ignore[attr-defined]


async def test_unpinning_lets_go(cluster: Cluster, node: FakeNode) -> None:
    await cluster.caller.deploy()
    await pin(cluster, tier=pb.TIER_SSD)
    await pin(cluster, tier=pb.TIER_DRAM)
    assert [one.tier for one in await unpin(cluster, tier=pb.TIER_SSD)] == [pb.TIER_SSD]
    assert list(node.holds()) == ["pin/tiny/DRAM"]
    assert [one.tier for one in await unpin(cluster)] == [pb.TIER_DRAM]
    assert node.holds() == {}
    with pytest.raises(errors.PinNotFound, match="tiny is not pinned on any node"):
        await unpin(cluster)


async def test_pins_are_listed_and_whether_they_are_held(cluster: Cluster, node: FakeNode) -> None:
    await cluster.caller.deploy()
    await cluster.caller.deploy("other", "file:///other")
    await pin(cluster, tier=pb.TIER_DRAM)
    await pin(cluster, tier=pb.TIER_SSD, ttl=Duration(seconds=3600))
    await pin(cluster, deployment="other")

    async def listed(**fields: Any) -> list[tuple[str, int, bool]]:
        request = cluster_pb.ListPinsRequest(**fields)
        pins = (await cluster.caller.ask("ListPins", request)).pins
        return [(one.pin.deployment, one.pin.tier, one.held) for one in pins]

    async def all_held() -> bool:
        tiny = [("tiny", pb.TIER_DRAM, True), ("tiny", pb.TIER_SSD, True)]
        return await listed() == [("other", pb.TIER_DRAM, True), *tiny]

    await assert_eventually(all_held)
    assert await listed(deployment="other") == [("other", pb.TIER_DRAM, True)]
    first = await cluster.caller.ask("ListPins", cluster_pb.ListPinsRequest(page_size=1))
    rest = await listed(page_token=first.next_page_token)
    assert [one.pin.deployment for one in first.pins] == ["other"]
    assert [name for name, *_ in rest] == ["tiny", "tiny"]
    await node.leave()

    async def away() -> bool:
        return not any(held for *_, held in await listed())

    await assert_eventually(away)
    with pytest.raises(errors.DeploymentNotFound):
        await listed(deployment="nobody")


async def test_a_repeated_call_changes_nothing(cluster: Cluster, node: FakeNode) -> None:
    await cluster.caller.deploy()
    first = (await pin(cluster, request_id="p", ttl=Duration(seconds=60)))[-1]
    assert (await pin(cluster, request_id="p", ttl=Duration(seconds=60)))[-1] == first
    assert len([one for one in node.calls if getattr(one, "hold_id", "")]) == 1
    gone = await unpin(cluster, request_id="u")
    assert await unpin(cluster, request_id="u") == gone
    assert (await pin(cluster, request_id="p", ttl=Duration(seconds=60)))[-1] == first
    assert node.holds() == {}
    with pytest.raises(errors.RequestIdInUse):
        await pin(cluster, request_id="p")


async def test_a_repeated_call_joins_what_is_under_way(cluster: Cluster, node: FakeNode) -> None:
    await cluster.caller.deploy()
    await assert_eventually(lambda: node.copies)
    node.script.before_promoted.shut()
    both = [asyncio.create_task(pin(cluster, request_id="p")) for _ in range(2)]
    await assert_eventually(lambda: node.script.before_promoted.waiting)
    node.script.before_promoted.open()
    first, second = await asyncio.gather(*both)
    assert first[-1] == second[-1]
    assert len([one for one in node.calls if getattr(one, "hold_id", "")]) == 1


async def test_a_pin_outlives_its_caller(cluster: Cluster, node: FakeNode) -> None:
    await cluster.caller.deploy()
    await assert_eventually(lambda: node.copies)
    node.script.before_promoted.shut()
    call: Any = cluster.caller.cluster.Pin(pin_of())
    await call.read()
    call.cancel()
    node.script.before_promoted.open()
    await assert_eventually(node.holds)


async def test_a_pin_that_its_node_refuses_is_none(cluster: Cluster, node: FakeNode) -> None:
    await cluster.caller.deploy()
    await assert_eventually(lambda: node.copies)
    node.script.promote_error = errors.NoCapacity("all of DRAM is leased")
    with pytest.raises(errors.NoCapacity, match="all of DRAM is leased"):
        await pin(cluster)
    with pytest.raises(errors.PinNotFound):
        await unpin(cluster)


async def test_a_pin_survives_a_restart_of_the_control_plane(
    cluster: Cluster, node: FakeNode
) -> None:
    await cluster.caller.deploy()
    await pin(cluster)
    await cluster.restart_control()
    assert list(node.holds()) == ["pin/tiny/DRAM"]
    assert len(await unpin(cluster)) == 1
    await assert_eventually(lambda: not node.holds())


async def test_a_pin_is_applied_again_to_a_node_that_comes_back_empty(
    cluster: Cluster, node: FakeNode
) -> None:
    await cluster.caller.deploy()
    await pin(cluster)
    await cluster.lose_node("n1")
    again = await cluster.add_node("n1")
    await assert_eventually(again.holds)
    assert list(again.holds()) == ["pin/tiny/DRAM"]


async def test_a_node_that_was_away_is_told_of_an_unpin(cluster: Cluster, node: FakeNode) -> None:
    await cluster.caller.deploy()
    await pin(cluster)
    await node.leave()
    await cluster.wait_for_nodes(0)
    await unpin(cluster)
    assert node.holds()
    await node.die()
    await node.start(cluster.address)
    await assert_eventually(lambda: not node.holds())


async def test_an_unpin_whose_caller_leaves_is_told_to_the_node(
    cluster: Cluster, node: FakeNode
) -> None:
    await cluster.caller.deploy()
    await pin(cluster)
    node.script.before_release.shut()
    leaving = asyncio.create_task(unpin(cluster))
    await assert_eventually(lambda: node.script.before_release.waiting)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    await cluster.caller.node()  # by then it has heard of that
    node.script.before_release.open()
    await assert_eventually(lambda: not node.holds())


async def test_a_pin_whose_time_is_up_is_none(cluster: Cluster, node: FakeNode) -> None:
    await cluster.caller.deploy()
    await pin(cluster, ttl=Duration(nanos=1_000_000))

    async def over() -> bool:
        try:
            await unpin(cluster)
        except errors.PinNotFound:
            return True
        return False

    await assert_eventually(over)
    await pin(cluster, ttl=Duration(nanos=1_000_000))
    await cluster.restart_control()
    with pytest.raises(errors.PinNotFound):
        await unpin(cluster)


async def test_a_deployment_takes_its_pins_with_it(cluster: Cluster, node: FakeNode) -> None:
    await cluster.caller.deploy()
    await pin(cluster)
    await cluster.caller.delete("tiny")
    await assert_eventually(lambda: not node.holds())
    await cluster.caller.deploy()
    await cluster.restart_control()
    with pytest.raises(errors.PinNotFound):
        await unpin(cluster)


async def test_a_pin_whose_deployment_went_as_it_was_stored_counts_for_nothing_and_goes(
    tmp_path: Path,
) -> None:
    config = ControlConfig(tmp_path)
    store, batches = stores_of(config)
    store.put_pin(Pin(Place("tiny", Tier.DRAM, "n1"), None), Call("", "", PINNED), 1.0)
    plane = ControlPlane(config, store, batches, MonotonicClock())
    await plane.load()
    assert plane.pinning.pins("")
    assert plane.pinning.pinned_bytes("default") == 0
    plane.state.fleet.apply(Report("n1", 1, Full(shapes.facts("n1"))), 1.0)
    plane.pinning.node_joined(plane.state.fleet.nodes["n1"])
    await assert_eventually(lambda: not plane.pinning.pins(""))
    assert not store.pins()
    await plane.close()


async def test_what_a_node_holds_for_a_pin_of_no_deployment_is_released(
    cluster: Cluster, node: FakeNode, tmp_path: Path
) -> None:
    await cluster.caller.deploy()
    await pin(cluster)
    await cluster.stop_control()
    store, batches = stores_of(ControlConfig(tmp_path))
    (left,) = store.pins()
    store.delete("tiny", UNASKED, 1.0)
    store.put_pin(left, Call("", "", PINNED), 1.0)
    store.close()
    batches.close()
    await cluster.start()
    await assert_eventually(lambda: not node.holds())


async def test_pins_do_not_count_on_the_same_room(cluster: Cluster) -> None:
    node = await cluster.add_node("n1", dram_mib=25)
    for name in ("tiny", "b", "c"):
        await cluster.caller.deploy(name, f"file:///{name}")
    await pin(cluster)
    await pin(cluster, deployment="b")
    with pytest.raises(errors.NoCapacity, match=rf"takes {10 * MIB} bytes.* {20 * MIB} are pinned"):
        await pin(cluster, deployment="c")
    assert len(node.holds()) == 2
    await pin(cluster, ttl=Duration(seconds=60))  # the same again is no more


async def test_what_is_pinned_is_no_room_for_others(cluster: Cluster) -> None:
    """Its instance may end; its weights stay all the same."""
    await cluster.add_node("n1", dram_mib=15)
    await cluster.caller.deploy("tiny", "file:///a")
    await cluster.caller.deploy("other", "file:///b")
    await cluster.caller.complete("tiny")
    await pin(cluster)
    await assert_eventually(lambda: told_holds(cluster, "pin/tiny/DRAM"))
    stream = cluster.caller.generate("other", timeout=2.0)
    with pytest.raises((errors.DeadlineExceeded, errors.NoCapacity)):
        await stream.end()


# --- prefetches ---------------------------------------------------------------------------------


async def test_a_prefetch_says_where_and_until_when(cluster: Cluster, node: FakeNode) -> None:
    await cluster.caller.deploy()
    steps = await prefetch(cluster)
    assert steps[0].placed.node_id == "n1"
    assert {step.WhichOneof("event") for step in steps[1:-1]} <= {"loading"}
    done = steps[-1].done
    assert (done.node_id, done.tier, done.digest) == ("n1", pb.TIER_DRAM, TINY)
    (call,) = [one for one in node.calls if getattr(one, "hold_id", "")]
    assert call.hold_id.startswith("prefetch/")  # type: ignore[attr-defined]
    assert call.hold_ttl.ToSeconds() == 600  # type: ignore[attr-defined]


async def test_a_prefetch_goes_where_a_start_would_be_soonest(cluster: Cluster) -> None:
    await cluster.add_node("n1")
    near = await cluster.add_node("n2")
    near.add_copy("file:///near", pb.TIER_SSD)

    async def known() -> bool:
        return bool((await cluster.caller.node("n2")).copies)

    await assert_eventually(known)
    near.script.model.digest = "digest-of-file:///near"
    await cluster.caller.deploy("near", "file:///near")
    await cluster.caller.deploy()
    assert (await prefetch(cluster, deployment="near"))[0].placed.node_id == "n2"
    assert (await prefetch(cluster, node_id="n1"))[0].placed.node_id == "n1"


async def test_a_source_needs_no_deployment(cluster: Cluster, node: FakeNode) -> None:
    done = (await prefetch(cluster, source="/models/new", tier=pb.TIER_SSD))[-1].done
    assert done.digest == "digest-of-file:///models/new"
    assert len(node.holds()) == 1


async def test_a_repeated_prefetch_joins_the_first_or_gets_its_end(
    cluster: Cluster, node: FakeNode
) -> None:
    await cluster.caller.deploy()
    await assert_eventually(lambda: node.copies)
    node.script.before_promoted.shut()
    both = [asyncio.create_task(prefetch(cluster, request_id="once")) for _ in range(2)]
    await assert_eventually(lambda: node.script.before_promoted.waiting)
    with pytest.raises(errors.RequestIdInUse):
        await prefetch(cluster, request_id="once", tier=pb.TIER_SSD)
    node.script.before_promoted.open()
    first, second = await asyncio.gather(*both)
    assert first[-1] == second[-1]
    await cluster.restart_control()
    assert (await prefetch(cluster, request_id="once"))[-1] == first[-1]
    assert len(node.holds()) == 1


async def test_a_prefetch_fails_with_the_nodes_reason(cluster: Cluster, node: FakeNode) -> None:
    await cluster.caller.deploy()
    node.script.promote_error = errors.CheckpointCorrupt("chunk 3 is not as written")
    with pytest.raises(errors.CheckpointCorrupt, match="chunk 3"):
        await prefetch(cluster)


async def test_a_node_that_comes_and_goes_has_one_loop_for_each_pin(
    cluster: Cluster, node: FakeNode
) -> None:
    await cluster.caller.deploy()
    await pin(cluster)
    node.drop_hold(next(iter(node.holds())))
    node.script.promote_error = errors.NoCapacity("full")

    def loops() -> list[str]:
        return [one.get_name() for one in asyncio.all_tasks() if one.get_name() == LOOP]

    for _ in range(3):
        await node.leave()
        await cluster.wait_for_nodes(0)
        asked = node.count("Promote")
        node.begin_reports(cluster.address)
        await cluster.wait_for_nodes(1)
        await assert_eventually(lambda: loops() or node.count("Promote") > asked)  # noqa: B023
        assert len(loops()) <= 1
