"""What the operators' commands print, and how they end."""

import json

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from serverlessllm.v1 import cluster_service_pb2 as pb
from serverlessllm.v1 import types_pb2 as types

from sllm import errors
from sllm.cli.durations import format_seconds, parse_duration
from sllm.cli.top import Rates
from sllm.client.types.deployments import Instance
from sllm.client.types.enums import InstanceState
from sllm.client.types.operations import InstanceLoad
from tests.cli.conftest import Run
from tests.client.fake_control import FakeControl
from tests.client.test_operations import PINNED

MIB = 1024 * 1024
HALF, NOTHING = Duration(nanos=500_000_000), Duration()
PARTS = pb.StartEstimate(making_room=NOTHING, queue=NOTHING, transfer=HALF, init=HALF)
EXPLAINED = pb.ExplainPlacementResponse(
    action=pb.PLACEMENT_ACTION_START,
    node_id="n-2",
    estimate=Duration(seconds=1),
    why="n-2 is ready soonest, in 1.00 s",
    candidates=[
        pb.PlacementCandidate(
            node_id="n-2",
            from_tier=types.TIER_SSD,
            estimate=Duration(seconds=1),
            parts=PARTS,
            victims=["i-1"],
            evicted_bytes=MIB,
            verdict="chosen: it has the weights on SSD, made ready",
            ready_made=True,
        ),
        pb.PlacementCandidate(
            node_id="n-1",
            from_tier=types.TIER_REMOTE,
            rejected="too small",
            verdict="too small",
        ),
    ],
)
NODE = types.Node(
    node_id="n-1",
    tiers=[
        types.TierUsage(tier=types.TIER_SSD, capacity_bytes=4 * MIB, used_bytes=MIB),
        types.TierUsage(tier=types.TIER_DRAM, capacity_bytes=2 * MIB, used_bytes=2 * MIB),
    ],
    kv_capacity_bytes=10,
    kv_used_bytes=4,
    links=[
        types.LinkObservation(
            from_tier=types.TIER_SSD,
            to_tier=types.TIER_DRAM,
            bytes_per_second=1.5e9,
            queued_bytes=MIB,
        )
    ],
    draining=True,
)
INSTANCE = types.Instance(
    instance_id="i-1", deployment="tiny", node_id="n-1", state=types.INSTANCE_STATE_READY
)
CLUSTER = pb.WatchClusterResponse(
    revision=3,
    full=pb.ClusterState(
        nodes=[NODE],
        instances=[pb.InstanceLoad(instance=INSTANCE, in_flight=2, generated_tokens=5)],
        deployments=[
            pb.DeploymentLoad(deployment="idle"),
            pb.DeploymentLoad(deployment="tiny", queued_requests=3, ready_instances=1),
        ],
    ),
)


def test_explain_compares_the_nodes(run: Run, control: FakeControl) -> None:
    control.reply("ExplainPlacement", EXPLAINED)

    heading, _, chosen, other = run("explain", "tiny").out.splitlines()
    assert heading == "start on n-2: n-2 is ready soonest, in 1.00 s"
    assert " ".join(chosen.split()) == (
        "n-2 SSD, ready-made 1.00 s 0 ms 0 ms 500 ms 500 ms 1 idle end, evict 1.0 MiB "
        "chosen: it has the weights on SSD, made ready"
    )
    assert " ".join(other.split()) == "n-1 REMOTE - - - - - - too small"


def test_prefetch_takes_a_name_or_a_source(run: Run, control: FakeControl) -> None:
    done = pb.PrefetchDone(node_id="n-1", tier=types.TIER_DRAM, expires_at=Timestamp(seconds=9))
    for _ in range(2):
        control.reply("Prefetch", pb.PrefetchResponse(done=done))

    assert run("prefetch", "tiny", "--ttl", "10m").out.startswith("tiny: in DRAM of n-1, until ")
    run("prefetch", "/models/tiny", "--tier", "ssd")
    named, sourced = control.requests["Prefetch"]
    assert (named.deployment, named.ttl.seconds) == ("tiny", 600)
    assert (sourced.source, sourced.tier) == ("/models/tiny", types.TIER_SSD)


def test_pin_and_unpin(run: Run, control: FakeControl) -> None:
    endless = pb.PinnedCheckpoint(deployment="tiny", tier=types.TIER_DRAM, node_id="n-1")
    control.reply("Pin", pb.PinResponse(done=endless))
    control.reply("Unpin", pb.UnpinResponse(unpinned=[endless]))

    pinned = run("pin", "tiny", "--node", "n-1").out
    assert pinned == "tiny in DRAM of n-1: pinned until it is unpinned\n"
    assert run("unpin", "tiny").out == "tiny in DRAM of n-1: no longer pinned\n"


def test_pins_are_listed(run: Run, control: FakeControl) -> None:
    endless = pb.PinnedCheckpoint(deployment="tiny", tier=types.TIER_DRAM, node_id="n-1")
    pins = [pb.ListedPin(pin=endless, held=True), pb.ListedPin(pin=endless)]
    control.reply("ListPins", pb.ListPinsResponse(pins=pins))

    rows = [line.split() for line in run("pins").out.splitlines()]
    assert rows[0] == ["DEPLOYMENT", "TIER", "NODE", "HELD", "UNTIL"]
    assert rows[1:] == [["tiny", "DRAM", "n-1", held, "-"] for held in ("yes", "no")]


def test_drain_and_undo(run: Run, control: FakeControl) -> None:
    control.reply("DrainNode", pb.DrainNodeResponse(done=pb.DrainDone()))
    control.reply("UndrainNode", pb.UndrainNodeResponse())

    assert run("drain", "n-1", "--grace", "30s", "--force").out.startswith("n-1: drained; ")
    assert run("drain", "n-1", "--undo").out == "n-1: takes new work\n"
    (request,) = control.requests["DrainNode"]
    assert (request.grace.seconds, request.force) == (30, True)


def test_a_node_that_is_away_can_be_undrained(run: Run, control: FakeControl) -> None:
    control.reply("UndrainNode", pb.UndrainNodeResponse())
    control.reply("ListNodes", pb.ListNodesResponse())

    outcome = run("drain", "n-1", "--undo", "--json")
    assert (outcome.code, outcome.out) == (0, "null\n")


def test_a_refusal_is_one_line_and_status_1(run: Run, control: FakeControl) -> None:
    control.reply("DrainNode", errors.NodeNeeded("n-1 is the last node"))

    outcome = run("drain", "n-1")
    assert outcome.code == 1
    line = outcome.err.splitlines()[-1]
    assert line.startswith("error: NODE_NEEDED: n-1 is the last node (next: `sllm drain ")


@pytest.mark.parametrize(
    ("command", "method", "expected"),
    [
        (["explain", "tiny"], "ExplainPlacement", {"action": "START", "node_id": "n-2"}),
        (["prefetch", "tiny"], "Prefetch", {"node_id": "n-1", "tier": "DRAM"}),
        (["pin", "tiny", "--node", "n-1"], "Pin", {"deployment": "tiny", "pinned_until": 9.0}),
        (["unpin", "tiny"], "Unpin", {"deployment": "tiny", "pinned_until": 9.0}),
        (["pins"], "ListPins", {"deployment": "tiny", "pinned_until": 9.0, "held": True}),
        (["drain", "n-1"], "DrainNode", {"node_id": "n-1", "draining": True}),
        (["top"], "WatchCluster", {"revision": 3}),
    ],
)
def test_every_command_speaks_json(
    run: Run, control: FakeControl, command: list[str], method: str, expected: dict[str, object]
) -> None:
    prefetched = pb.PrefetchDone(node_id="n-1", tier=types.TIER_DRAM)
    replies = {
        "ExplainPlacement": EXPLAINED,
        "Prefetch": pb.PrefetchResponse(done=prefetched),
        "Pin": pb.PinResponse(done=PINNED),
        "Unpin": pb.UnpinResponse(unpinned=[PINNED]),
        "ListPins": pb.ListPinsResponse(pins=[pb.ListedPin(pin=PINNED, held=True)]),
        "DrainNode": pb.DrainNodeResponse(done=pb.DrainDone()),
        "WatchCluster": CLUSTER,
    }
    control.reply(method, replies[method])
    control.reply("ListNodes", pb.ListNodesResponse(nodes=[NODE]))

    told = json.loads(run(*command, "--json").out)
    first = told[0] if isinstance(told, list) else told
    assert {name: first[name] for name in expected} == expected


# --- top ----------------------------------------------------------------------------------------


def test_top_once_prints_one_frame(run: Run, control: FakeControl) -> None:
    control.reply("WatchCluster", CLUSTER)

    out = run("top", "--once").out
    words = [" ".join(line.split()) for line in out.splitlines()]
    assert words[0] == "1 node, 1 instance, 2 deployments; requests: 2 running, 3 waiting"
    assert "n-1 ━━──────── 25% ━━━━━━━━━━ 100% ━━━━────── 40% " in " ".join(words)
    assert "SSD→DRAM 1.50 GB/s, 1.0 MiB wait" in out
    assert "draining 1.0 MiB/4.0 MiB 2.0 MiB/2.0 MiB 4 B/10 B" in words
    assert "i-1 tiny n-1 READY 2 - 0 B" in words
    assert words.index("tiny 3 1 0") < words.index("idle 0 0 0")


def test_top_shows_starts_moves_and_what_has_ended(run: Run, control: FakeControl) -> None:
    starting = types.Instance(instance_id="i-2", state=types.INSTANCE_STATE_STARTING)
    loading = types.Loading(phase=types.LOAD_PHASE_READ, loaded_bytes=MIB, total_bytes=4 * MIB)
    loading.estimated_remaining.FromMilliseconds(310)
    ended = pb.EndedRequest(request_id="r-1", deployment="tiny", outcome="OK", generated_tokens=7)
    ended.duration.FromSeconds(2)
    ended.receipt.MergeFrom(types.Receipt(cold=True, from_tier=types.TIER_SSD))
    ended.receipt.time_to_first_token.FromMilliseconds(1500)
    state = pb.ClusterState(
        instances=[
            pb.InstanceLoad(instance=starting, loading=loading),
            pb.InstanceLoad(instance=INSTANCE, moving_to=["i-2"]),
        ],
        ended_requests=[ended],
    )
    control.reply("WatchCluster", pb.WatchClusterResponse(revision=1, full=state))

    out = " ".join(run("top", "--once").out.split())
    assert "reading into memory 25%, 310 ms left" in out
    assert "→ i-2" in out
    assert "r-1 tiny OK 1.50 s SSD 2.00 s 7" in out


def test_top_shows_those_with_most_to_do(run: Run, control: FakeControl) -> None:
    loads = [pb.DeploymentLoad(deployment=f"m{i:02}", queued_requests=i) for i in range(25)]
    state = pb.ClusterState(deployments=loads)
    control.reply("WatchCluster", pb.WatchClusterResponse(full=state))

    out = run("top", "--once").out
    assert "m24" in out
    assert "m04" not in out
    assert "and 5 more" in out


def test_top_ends_with_the_control_planes_reason(run: Run, control: FakeControl) -> None:
    control.reply("WatchCluster", CLUSTER, errors.ShuttingDown("watch again"))

    outcome = run("top", "--interval", "10ms")
    assert outcome.code == 1
    assert "SHUTTING_DOWN: watch again" in outcome.err


def test_top_refuses_an_interval_of_nothing(run: Run) -> None:
    assert run("top", "--interval", "0s").code == 2


def test_rates_are_those_between_two_frames() -> None:
    def loads(**tokens: int) -> list[InstanceLoad]:
        return [
            InstanceLoad(Instance(name, "m", "n", InstanceState.READY, 0, 0, "", 0.0, 0), 0, count)
            for name, count in tokens.items()
        ]

    rates = Rates()
    assert rates.take(loads(a=10), 1.0) == {}
    assert rates.take(loads(a=30, b=5), 3.0) == {"a": 10.0}
    assert rates.take(loads(b=6), 4.0) == {"b": 1.0}


# --- lengths of time ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90.0), ("90s", 90.0), ("1.5m", 90.0), ("2h", 7200.0), ("250ms", 0.25), ("-5m", -300.0)],
)
def test_lengths_of_time(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["soon", "", "5 years", "1e9", "nan"])
def test_what_is_no_length_of_time(run: Run, text: str) -> None:
    outcome = run("pin", "tiny", "--node", "n-1", "--ttl", text)
    assert outcome.code == 2
    assert "is no time" in outcome.err


def test_times_for_people() -> None:
    shown = [format_seconds(one) for one in (None, 0.0, 0.31, 1.254, 600.0)]
    assert shown == ["-", "0 ms", "310 ms", "1.25 s", "10.0 min"]
