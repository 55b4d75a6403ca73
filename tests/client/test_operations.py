"""What the operators' methods ask of the control plane, and what they make of its answers."""

import dataclasses
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from serverlessllm.v1 import cluster_service_pb2 as pb
from serverlessllm.v1 import types_pb2 as types

import sllm
from sllm import errors
from tests.client.conftest import Call
from tests.client.fake_control import FakeControl, Silence
from tests.support import wait_until

LOADING = types.Loading(
    phase=types.LOAD_PHASE_READ, from_tier=types.TIER_SSD, loaded_bytes=1, total_bytes=4
)
PINNED = pb.PinnedCheckpoint(
    deployment="tiny", tier=types.TIER_DRAM, node_id="n-1", expires_at=Timestamp(seconds=9)
)
PIN = sllm.Pin("tiny", sllm.Tier.DRAM, "n-1", 9.0)


def test_explain_tells_what_the_control_plane_would_do(control: FakeControl, call: Call) -> None:
    half = Duration(nanos=500_000_000)
    candidate = pb.PlacementCandidate(
        node_id="n-1",
        from_tier=types.TIER_SSD,
        estimate=half,
        parts=pb.StartEstimate(making_room=Duration(), queue=half, transfer=half, init=half),
        victims=["i-1"],
        migrated=["i-2"],
        evicted_bytes=7,
        rejected="",
        verdict="chosen",
        ready_made=True,
    )
    unknown = pb.PlacementCandidate(node_id="n-2", from_tier=types.TIER_REMOTE, rejected="small")
    control.reply(
        "ExplainPlacement",
        pb.ExplainPlacementResponse(
            action=pb.PLACEMENT_ACTION_START,
            node_id="n-1",
            estimate=half,
            why="it is near",
            candidates=[candidate, unknown],
        ),
    )

    found = call("explain", "tiny")
    assert found == sllm.Placement(
        action=sllm.PlacementAction.START,
        node_id="n-1",
        instance_id="",
        estimate=0.5,
        why="it is near",
        candidates=(
            sllm.PlacementCandidate(
                node_id="n-1",
                from_tier=sllm.Tier.SSD,
                estimate=0.5,
                parts=sllm.StartEstimate(0.0, 0.5, 0.5, 0.5),
                victims=("i-1",),
                migrated=("i-2",),
                evicted_bytes=7,
                rejected="",
                verdict="chosen",
                ready_made=True,
            ),
            sllm.PlacementCandidate(
                "n-2", sllm.Tier.REMOTE, None, None, (), (), 0, "small", verdict=""
            ),
        ),
    )
    assert control.requests["ExplainPlacement"][0].deployment == "tiny"


def test_prefetch_says_what_it_was_told_and_returns_where_it_is(
    control: FakeControl, call: Call
) -> None:
    done = pb.PrefetchDone(
        node_id="n-1", tier=types.TIER_SSD, digest="abc", expires_at=Timestamp(seconds=9)
    )
    control.reply(
        "Prefetch",
        pb.PrefetchResponse(placed=pb.PrefetchPlaced(node_id="n-1")),
        pb.PrefetchResponse(loading=LOADING),
        pb.PrefetchResponse(done=done),
    )
    seen: list[sllm.Progress] = []

    found = call("prefetch", "tiny", tier="ssd", node="n-1", ttl=1.5, on_progress=seen.append)
    assert found == sllm.Prefetched("n-1", sllm.Tier.SSD, "abc", 9.0)
    assert [(one.loaded_bytes, one.total_bytes) for one in seen] == [(1, 4)]
    (request,) = control.requests["Prefetch"]
    assert request.request_id
    request.request_id = ""
    assert request == pb.PrefetchRequest(
        deployment="tiny",
        tier=types.TIER_SSD,
        node_id="n-1",
        ttl=Duration(seconds=1, nanos=500_000_000),
    )


def test_a_source_is_prefetched_without_a_deployment(control: FakeControl, call: Call) -> None:
    control.reply("Prefetch", pb.PrefetchResponse(done=pb.PrefetchDone(tier=types.TIER_DRAM)))

    call("prefetch", source="file:///m", dtype="float32", request_id="mine")
    (request,) = control.requests["Prefetch"]
    assert request == pb.PrefetchRequest(
        request_id="mine", source="file:///m", dtype="float32", tier=types.TIER_DRAM
    )


def test_pin_and_unpin(control: FakeControl, call: Call) -> None:
    control.reply("Pin", pb.PinResponse(loading=LOADING), pb.PinResponse(done=PINNED))
    control.reply("Unpin", pb.UnpinResponse(unpinned=[PINNED]))
    seen: list[sllm.Progress] = []

    assert call("pin", "tiny", node="n-1", ttl=60, on_progress=seen.append) == PIN
    assert call("unpin", "tiny", node="n-1", tier="DRAM") == [PIN]
    assert len(seen) == 1
    pin, unpin = control.requests["Pin"][0], control.requests["Unpin"][0]
    assert (pin.tier, pin.node_id, pin.ttl.seconds) == (types.TIER_DRAM, "n-1", 60)
    assert (unpin.tier, unpin.node_id) == (types.TIER_DRAM, "n-1")
    assert pin.request_id
    assert unpin.request_id
    assert pin.request_id != unpin.request_id


def test_pins_are_listed_page_by_page(control: FakeControl, call: Call) -> None:
    held, away = (pb.ListedPin(pin=PINNED, held=value) for value in (True, False))
    control.reply("ListPins", pb.ListPinsResponse(pins=[held], next_page_token="more"))
    control.reply("ListPins", pb.ListPinsResponse(pins=[away]))

    listed = call("pins", "tiny")
    assert listed == [dataclasses.replace(PIN, held=value) for value in (True, False)]
    first, second = control.requests["ListPins"]
    assert (first.deployment, first.page_token, second.page_token) == ("tiny", "", "more")


def test_a_pin_without_an_end(control: FakeControl, call: Call) -> None:
    endless = pb.PinnedCheckpoint(deployment="tiny", tier=types.TIER_SSD, node_id="n-1")
    control.reply("Pin", pb.PinResponse(done=endless))

    assert call("pin", "tiny", node="n-1", tier="SSD").pinned_until is None
    assert not control.requests["Pin"][0].HasField("ttl")


def test_drain_follows_to_the_end(control: FakeControl, call: Call) -> None:
    control.reply(
        "DrainNode",
        pb.DrainNodeResponse(progress=pb.DrainProgress(running_requests=2, instances=1)),
        pb.DrainNodeResponse(progress=pb.DrainProgress()),
        pb.DrainNodeResponse(done=pb.DrainDone()),
    )
    control.reply("UndrainNode", pb.UndrainNodeResponse())
    seen: list[sllm.DrainProgress] = []

    assert call("drain", "n-1", grace=0.0, force=True, on_progress=seen.append) is None
    call("undrain", "n-1")
    assert seen == [sllm.DrainProgress(2, 1), sllm.DrainProgress(0, 0)]
    (request,) = control.requests["DrainNode"]
    assert (request.node_id, request.force, request.HasField("grace")) == ("n-1", True, True)
    assert control.requests["UndrainNode"][0].node_id == "n-1"


REFUSED: dict[str, tuple[str, tuple[str, ...], dict[str, Any]]] = {
    "nothing to prefetch": ("prefetch", (), {}),
    "two things to prefetch": ("prefetch", ("tiny",), {"source": "file:///m"}),
    "a tier that there is not": ("prefetch", ("tiny",), {"tier": "tape"}),
    "a tier that there is not, pinned": ("pin", ("tiny",), {"node": "n", "tier": ""}),
    "a time that is no number": ("pin", ("tiny",), {"node": "n", "ttl": float("nan")}),
    "an infinite grace": ("drain", ("n-1",), {"grace": float("inf")}),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_said_is_refused_at_once(
    control: FakeControl, call: Call, what: str
) -> None:
    method, arguments, keywords = REFUSED[what]
    with pytest.raises(errors.InvalidArgument):
        call(method, *arguments, **keywords)
    assert not any(control.requests.values())


def test_the_control_planes_refusals_are_raised(control: FakeControl, call: Call) -> None:
    control.reply("DrainNode", errors.NodeNeeded("it is the last", metadata={"a": "b"}))
    control.reply("Pin", errors.ModelTooLarge("10 bytes, 5 there are"))

    with pytest.raises(errors.NodeNeeded, match="it is the last") as caught:
        call("drain", "n-1")
    assert caught.value.metadata == {"a": "b"}
    with pytest.raises(errors.ModelTooLarge, match="10 bytes"):
        call("pin", "tiny", node="n-1")


# --- watching -----------------------------------------------------------------------------------


def node(node_id: str, **fields: Any) -> types.Node:
    return types.Node(node_id=node_id, **fields)


def load(instance_id: str, in_flight: int = 0) -> pb.InstanceLoad:
    return pb.InstanceLoad(instance=types.Instance(instance_id=instance_id), in_flight=in_flight)


FULL = pb.WatchClusterResponse(
    revision=5,
    full=pb.ClusterState(
        nodes=[node("n-2"), node("n-1")],
        instances=[load("i-1", 2)],
        deployments=[pb.DeploymentLoad(deployment="tiny", queued_requests=3, ready_instances=1)],
    ),
)
DELTA = pb.WatchClusterResponse(
    revision=6,
    delta=pb.ClusterDelta(
        nodes=[node("n-1", draining=True)],
        instances=[load("i-2")],
        gone_nodes=["n-2"],
        gone_instances=["i-1"],
        gone_deployments=["tiny"],
    ),
)
ENDED = pb.WatchClusterResponse(
    revision=7,
    delta=pb.ClusterDelta(
        instances=[
            pb.InstanceLoad(
                instance=types.Instance(instance_id="i-2"),
                loading=types.Loading(phase=types.LOAD_PHASE_READ, loaded_bytes=1, total_bytes=4),
                moving_to=["i-3"],
            )
        ],
        ended_requests=[
            pb.EndedRequest(
                request_id=f"r-{number}",
                deployment="tiny",
                ended_at=Timestamp(seconds=9),
                duration=Duration(seconds=2),
                outcome="OK",
                generated_tokens=5,
                receipt=types.Receipt(cold=True) if number else None,
            )
            for number in range(65)
        ],
    ),
)
AGAIN = pb.WatchClusterResponse(revision=9, full=pb.ClusterState(nodes=[node("n-3")]))


def test_a_watcher_has_the_whole_cluster_at_every_moment(control: FakeControl) -> None:
    control.reply("WatchCluster", FULL, DELTA, AGAIN)

    with sllm.Client(control.address) as client:
        first, second, third = client.watch()
    assert [one.node_id for one in first.nodes] == ["n-1", "n-2"]
    assert [one.in_flight for one in first.instances] == [2]
    assert first.deployments == (sllm.DeploymentLoad("tiny", 3, 1, 0),)
    assert [(one.node_id, one.draining) for one in second.nodes] == [("n-1", True)]
    assert [one.instance.instance_id for one in second.instances] == ["i-2"]
    assert second.deployments == ()
    assert [one.node_id for one in third.nodes] == ["n-3"]
    assert third.instances == ()
    assert [one.revision for one in (first, second, third)] == [5, 6, 9]


def test_a_watcher_sees_starts_moves_and_what_has_ended(control: FakeControl) -> None:
    control.reply("WatchCluster", FULL, ENDED, AGAIN)

    with sllm.Client(control.address) as client:
        first, second, third = client.watch()
    assert (first.instances[0].loading, first.ended_requests) == (None, ())
    (instance,) = [one for one in second.instances if one.loading]
    assert instance.loading
    assert (instance.loading.phase, instance.loading.total_bytes) == (sllm.LoadPhase.READ, 4)
    assert instance.moving_to == ("i-3",)
    assert len(second.ended_requests) == 64, "the latest"
    last = second.ended_requests[-1]
    assert (last.request_id, last.outcome, last.generated_tokens) == ("r-64", "OK", 5)
    assert (last.ended_at, last.duration) == (9.0, 2.0)
    assert last.receipt
    assert last.receipt.cold
    assert third.ended_requests == (), "all of it was told anew"


async def test_a_watch_that_is_left_ends(control: FakeControl) -> None:
    control.reply("WatchCluster", FULL, Silence())

    async with sllm.AsyncClient(control.address) as client:
        watch = client.watch()
        assert (await anext(watch)).revision == 5
        await watch.aclose()
        wait_until(lambda: control.abandoned == ["WatchCluster"])


def test_a_watch_that_is_left_ends_without_a_loop_too(control: FakeControl) -> None:
    control.reply("WatchCluster", FULL, Silence())

    with sllm.Client(control.address) as client:
        for cluster in client.watch():
            assert cluster.revision == 5
            break
        wait_until(lambda: control.abandoned == ["WatchCluster"])


def test_a_copy_says_until_when_it_is_pinned(control: FakeControl, call: Call) -> None:
    def copy(tier: "types.Tier.ValueType", *ends: int | None) -> types.CheckpointCopy:
        holds = [
            types.Hold(hold_id="h", expires_at=None if end is None else Timestamp(seconds=end))
            for end in ends
        ]
        return types.CheckpointCopy(digest="abc", tier=tier, leased=bool(ends), holds=holds)

    copies = [
        copy(types.TIER_SSD),
        copy(types.TIER_SSD, 5, 7),
        copy(types.TIER_DRAM, 5, None),
    ]
    control.reply("ListNodes", pb.ListNodesResponse(nodes=[node("n-1", copies=copies)]))

    (found,) = call("nodes")
    pinned = [(one.pinned, one.pinned_until) for one in found.copies]
    assert pinned == [(False, None), (True, 7.0), (True, None)]
