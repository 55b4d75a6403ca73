"""ExplainPlacement: what would be decided, and how every node compares."""

from dataclasses import replace

import pytest
from serverlessllm.v1 import cluster_service_pb2 as cluster_pb
from serverlessllm.v1 import types_pb2 as pb

from sllm.control.cluster.nodes import NodeView
from sllm.control.cluster.snapshot import Snapshot
from sllm.control.cluster.tiers import Link, Tier, TierUsage
from sllm.control.cluster.zones import zones_of
from sllm.control.placement.decisions import Demand
from sllm.control.placement.explain import explain
from sllm.control.placement.placement import place
from sllm.control.placement.start_estimate import FETCH
from sllm.control.types.operations import ActionKind, Explanation
from tests.control import shapes
from tests.control.clusters import Cluster
from tests.support import assert_eventually


def explained(*views: NodeView, demand: Demand | None = None) -> Explanation:
    snapshot: Snapshot = shapes.snapshot(*views)
    return explain(place(snapshot, demand or Demand(shapes.need())))


def queued(node_id: str, queued_bytes: int) -> NodeView:
    """A node that has the weights on SSD, and reads other ones first."""
    links = {**shapes.LINKS, (Tier.SSD, Tier.DRAM): Link(shapes.FAST, queued_bytes)}
    return shapes.view(shapes.facts(node_id, links=links), copies=[shapes.copy()])


def in_dram(node_id: str) -> NodeView:
    copies = [shapes.copy(tier=Tier.DRAM), shapes.copy(tier=Tier.SSD)]
    return shapes.view(shapes.facts(node_id), copies=copies)


def test_a_cold_model_on_four_nodes_is_explained_node_by_node() -> None:
    """DRAM, SSD, nothing and too small: 1 s of init, 100 bytes at 1000 and 100 bytes/s."""
    found = explained(
        shapes.view(shapes.facts("empty")),
        in_dram("near"),
        queued("ssd", 200),
        shapes.view(shapes.facts("tiny", dram=50)),
    )
    assert (found.kind, found.node_id, found.estimate) == (ActionKind.START, "near", 1.0)
    assert found.why == (
        "near is ready soonest, in 1.00 s: its DRAM holds the weights; of the other nodes 2 would "
        "be no sooner, 1 cannot take it"
    )
    near, ssd, empty, tiny = found.candidates
    assert [one.node_id for one in found.candidates] == ["near", "ssd", "empty", "tiny"]
    assert near.verdict == "chosen: its DRAM holds the weights"
    assert ssd.verdict == (
        "300 ms later than near: the queue takes 200 ms, not 0 ms, the transfer takes 100 ms, "
        "not 0 ms"
    )
    assert empty.verdict == "1.00 s later than near: the transfer takes 1.00 s, not 0 ms"
    assert tiny.rejected == tiny.verdict == "too small: weights of 100 bytes, DRAM of 50"
    tiers = [one.from_tier for one in found.candidates]
    assert tiers == [Tier.DRAM, Tier.SSD, Tier.REMOTE, Tier.REMOTE]


def test_nodes_that_have_it_are_told_apart_from_those_that_would_have_it_of_them() -> None:
    """By where they have it, where nobody knows how long a start takes; and how far it is."""
    links = {**shapes.LINKS, FETCH: Link(shapes.FAST)}
    unknown = replace(shapes.facts("z", init=None), zone="a")
    taker = replace(shapes.facts("a", links=links, init=None), zone="b")
    demand, zones = Demand(shapes.need()), zones_of([("a", "b", 0.4)])
    views = shapes.view(unknown, copies=[shapes.copy()]), shapes.view(taker)
    found = explain(place(shapes.snapshot(*views, zones=zones), demand))
    assert [(one.node_id, one.from_tier) for one in found.candidates] == [
        ("z", Tier.SSD),
        ("a", Tier.PEER),
    ]
    assert found.candidates[1].verdict.endswith("z holds more of the weights")
    demand = Demand(shapes.need(), draining=frozenset({"z"}))
    found = explain(place(shapes.snapshot(*views, zones=zones), demand))
    assert found.candidates[0].verdict == (
        "chosen: it has to fetch the weights from other nodes, the way to which costs 400 ms"
    )


def test_only_forms_that_the_engine_takes_count_as_there() -> None:
    need = shapes.need()
    found = {
        engine: shapes.view(
            shapes.facts(engine),
            copies=[
                replace(
                    shapes.copy("made", Tier.DRAM),
                    made_of=need.checkpoint.digest,
                    made_for=engine,
                    sources=(),
                )
            ],
        )
        for engine in (need.engine, "another")
    }
    candidates = {one.node_id: one for one in explained(*found.values()).candidates}
    tiers = {name: (one.from_tier, one.ready_made) for name, one in candidates.items()}
    assert tiers == {need.engine: (Tier.DRAM, True), "another": (Tier.REMOTE, False)}
    verdict = candidates[need.engine].verdict
    assert verdict == "chosen: its DRAM holds the weights, made ready"


def test_the_parts_of_an_estimate_add_up_to_it() -> None:
    found = explained(in_dram("a"), queued("b", 200), shapes.view(shapes.facts("c")))
    for one in found.candidates:
        assert one.parts is not None
        parts = (one.parts.making_room, one.parts.queue, one.parts.transfer, one.parts.init)
        assert sum(parts) == pytest.approx(one.estimate)


def test_what_would_have_to_go_is_named() -> None:
    idle = shapes.instance("idle", kv=950)
    facts = shapes.facts("n1", dram=700)
    full = replace(facts, tiers={**facts.tiers, Tier.DRAM: TierUsage(700, 650)})
    (node,) = explained(shapes.view(full, instances=[idle])).candidates
    assert (node.victims, node.evicted_bytes) == (("idle",), 50)
    assert node.verdict.endswith("an idle instance ends and idle checkpoints are evicted first")


def test_ties_are_told_as_such() -> None:
    found = explained(in_dram("a"), in_dram("b"))
    assert found.candidates[1].verdict == "no sooner than a, which comes first by its name"


def test_a_drained_node_and_an_unknown_one() -> None:
    unknown = shapes.view(shapes.facts("u", links={}, init=None))
    demand = Demand(shapes.need(), draining=frozenset({"d"}))
    found = explained(shapes.view(shapes.facts("d")), unknown, demand=demand)
    verdicts = {one.node_id: one.verdict for one in found.candidates}
    assert verdicts["d"] == "it is being drained"
    assert found.node_id == "u"


def test_without_nodes_there_is_nothing_to_compare() -> None:
    found = explained()
    assert (found.kind, found.candidates) == (ActionKind.WAIT, ())
    assert found.why == "the cluster has no node"


# --- through the wire ---------------------------------------------------------------------------


async def ask(cluster: Cluster) -> cluster_pb.ExplainPlacementResponse:
    request = cluster_pb.ExplainPlacementRequest(deployment="tiny")
    answer: cluster_pb.ExplainPlacementResponse = await cluster.caller.ask(
        "ExplainPlacement", request
    )
    return answer


async def test_what_is_explained_is_what_is_done(cluster: Cluster) -> None:
    nodes = {name: await cluster.add_node(name) for name in ("n1", "n2", "n3", "n4")}
    await cluster.caller.deploy()
    nodes["n3"].add_copy("file:///models/tiny", pb.TIER_DRAM)

    async def known() -> bool:
        return (await ask(cluster)).node_id == "n3"

    await assert_eventually(known)
    told = await ask(cluster)
    assert told.action == cluster_pb.PLACEMENT_ACTION_START
    assert told.candidates[0].node_id == "n3"
    assert len(told.candidates) == 4
    assert all(one.verdict for one in told.candidates)
    assert all("n3" in one.verdict for one in told.candidates[1:])
    assert all(node.count("StartInstance") == 0 for node in nodes.values())
    await cluster.caller.complete()
    assert nodes["n3"].started() == ["tiny"]


async def test_it_tells_of_instances_that_are_there_or_coming(cluster: Cluster) -> None:
    node = await cluster.add_node("n1")
    await cluster.caller.deploy(max_concurrency=1)
    node.script.before_ready.shut()
    stream = await cluster.caller.generate().until("loading")
    coming = await ask(cluster)
    assert coming.action == cluster_pb.PLACEMENT_ACTION_JOIN
    assert coming.instance_id in node.instances
    node.script.before_finish.shut()
    node.script.before_ready.open()
    await stream.until("tokens")
    full = await ask(cluster)
    assert full.action == cluster_pb.PLACEMENT_ACTION_WAIT
    assert "max_replicas" in full.why
    node.script.before_finish.open()
    await stream.end()
    ready = await ask(cluster)
    assert ready.action == cluster_pb.PLACEMENT_ACTION_REUSE
    assert ready.node_id == "n1"
    assert ready.estimate.ToSeconds() == 0


def test_a_slot_that_is_waited_for_is_explained() -> None:
    found = explained(in_dram("near"), demand=Demand(shapes.need(), slot_wait=0.5))
    assert (found.kind, found.node_id) == (ActionKind.WAIT, "")
    assert found.why == "a slot is expected in 0.5 s, sooner than from a start"
    assert found.candidates[0].verdict == "could be ready in 1.00 s: its DRAM holds the weights"
