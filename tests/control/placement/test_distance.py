"""What the way between zones changes: where requests are served, and what is told of it."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serverlessllm.v1 import cluster_service_pb2 as cluster_pb
from serverlessllm.v1 import types_pb2 as pb

from sllm.control.cluster.nodes import NodeView
from sllm.control.cluster.tiers import Tier
from sllm.control.cluster.usage import Use
from sllm.control.cluster.zones import Origins, zones_of
from sllm.control.placement.decisions import Demand, Reuse, Start
from sllm.control.placement.explain import explain
from sllm.control.placement.placement import place
from sllm.control.types.operations import ActionKind
from tests.control import shapes
from tests.control.clusters import Cluster, cluster_of

LINKS = (("edge", "cloud", 0.5),)
FROM_EDGE = Origins.of(zones_of(LINKS), ["edge"])
DEMAND = Demand(shapes.need(), origins=FROM_EDGE)


def node(node_id: str, zone: str, tier: Tier | None = None) -> NodeView:
    """A node that holds the weights on a tier, and on those below it. None: it holds nothing."""
    tiers = [one for one in (Tier.SSD, Tier.DRAM) if tier and one <= tier]
    facts = replace(shapes.facts(node_id), zone=zone)
    return shapes.view(facts, copies=[shapes.copy(tier=one) for one in tiers])


def start_of(*views: NodeView, demand: Demand = DEMAND) -> Start:
    action = place(shapes.snapshot(*views), demand).action
    assert isinstance(action, Start)
    return action


def test_of_equals_the_nearest_is_taken() -> None:
    views = node("a", "cloud", Tier.DRAM), node("b", "edge", Tier.DRAM)
    assert start_of(*views).node_id == "b"
    assert start_of(*views, demand=Demand(shapes.need())).node_id == "a"


def test_what_is_far_is_taken_where_that_is_sooner_for_all_the_way() -> None:
    """From the source it takes a second longer than from DRAM, and the way half of one."""
    start = start_of(node("near", "edge"), node("far", "cloud", Tier.DRAM))
    assert (start.node_id, start.distance) == ("far", 0.5)
    assert start.estimate == pytest.approx(1.0)  # what a start is held against: no way is in it


def test_what_is_sooner_by_less_than_the_way_is_not() -> None:
    start = start_of(node("near", "edge", Tier.SSD), node("far", "cloud", Tier.DRAM))
    assert (start.node_id, start.distance) == ("near", 0.0)


def test_a_free_slot_that_is_near_comes_before_one_that_is_less_busy() -> None:
    views = [
        shapes.view(
            replace(shapes.facts(node_id), zone=zone),
            instances=[shapes.instance(instance_id, "m", node_id=node_id)],
        )
        for node_id, zone, instance_id in (("n1", "cloud", "i1"), ("n2", "edge", "i2"))
    ]
    uses = {"i2": Use("n2", 1, 0.0)}
    action = place(shapes.snapshot(*views, uses=uses), DEMAND).action
    assert isinstance(action, Reuse)
    assert (action.instance.instance_id, action.distance) == ("i2", 0.0)
    full = {"i2": Use("n2", shapes.need().max_concurrency, 0.0)}
    spilled = place(shapes.snapshot(*views, uses=full), DEMAND).action
    assert isinstance(spilled, Reuse)
    assert (spilled.instance.instance_id, spilled.distance) == ("i1", 0.5)


PLACES = st.tuples(
    st.sampled_from(["edge", "cloud", "elsewhere", ""]),
    st.sampled_from([None, Tier.SSD, Tier.DRAM]),
)


@given(st.lists(PLACES, min_size=1, max_size=6), st.floats(0.0, 3.0))
def test_nothing_would_be_sooner_with_the_way_there(
    places: list[tuple[str, Tier | None]], cost: float
) -> None:
    origins = Origins.of(zones_of([("edge", "cloud", cost)]), ["edge", "cloud", "edge"])
    views = [node(f"n{index}", zone, tier) for index, (zone, tier) in enumerate(places)]
    decision = place(shapes.snapshot(*views), Demand(shapes.need(), origins=origins))
    assert isinstance(decision.action, Start)
    assert decision.action.estimate is not None
    taken = decision.action.estimate + decision.action.distance
    offered = [one.estimate for one in decision.candidates if one.estimate is not None]
    assert taken == pytest.approx(min(offered))


def test_it_is_explained() -> None:
    near, far = node("near", "edge", Tier.SSD), node("far", "cloud", Tier.DRAM)
    found = explain(place(shapes.snapshot(near, far), DEMAND))
    assert (found.kind, found.node_id) == (ActionKind.START, "near")
    assert found.estimate == pytest.approx(1.1)
    chosen, other = found.candidates
    assert chosen.parts
    assert chosen.parts.distance == 0.0
    assert other.parts
    assert other.estimate == pytest.approx(1.5)
    assert other.parts.distance == 0.5
    assert other.verdict == "400 ms later than near: the way there takes 500 ms, not 0 ms"


# --- with a control plane -----------------------------------------------------------------------


async def zoned(cluster: Cluster) -> None:
    await cluster.add_node("n1", "cloud")
    await cluster.add_node("n2", "edge")


async def test_requests_are_served_near_their_callers_and_spill_when_that_is_full(
    cluster: Cluster,
) -> None:
    await zoned(cluster)
    await cluster.caller.deploy(min_replicas=2, max_replicas=2, max_concurrency=1)
    await cluster.wait_for_instances(2)
    for zone, node_id in (("edge", "n2"), ("cloud", "n1"), ("edge", "n2")):
        stream = await cluster.caller.complete(zone=zone)
        assert stream.receipt.node_id == node_id
    cluster.nodes["n2"].script.before_finish.shut()
    near = await cluster.caller.generate(zone="edge").until("tokens")
    spilled = await cluster.caller.complete(zone="edge")
    cluster.nodes["n2"].script.before_finish.open()
    await near.end()
    assert (near.receipt.node_id, spilled.receipt.node_id) == ("n2", "n1")


async def test_a_cold_model_starts_near_who_asks_for_it(cluster: Cluster) -> None:
    await zoned(cluster)
    await cluster.caller.deploy()
    explained = await cluster.caller.ask(
        "ExplainPlacement", cluster_pb.ExplainPlacementRequest(deployment="tiny", zone="edge")
    )
    assert explained.node_id == "n2"
    ways = {one.node_id: one.parts.distance.ToMilliseconds() for one in explained.candidates}
    assert ways == {"n2": 0, "n1": 100}
    stream = await cluster.caller.complete(zone="edge")
    assert stream.receipt.node_id == "n2"


async def test_links_of_zones_are_known_and_zones_told(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    links = (("edge", "cloud", 0.25),)
    async with cluster_of(tmp_path_factory.mktemp("zones"), zone_links=links) as cluster:
        await zoned(cluster)
        nodes: list[pb.Node] = await cluster.caller.nodes()
        assert {one.node_id: one.zone for one in nodes} == {"n1": "cloud", "n2": "edge"}
        await cluster.caller.deploy()
        explained = await cluster.caller.ask(
            "ExplainPlacement", cluster_pb.ExplainPlacementRequest(deployment="tiny", zone="cloud")
        )
        ways = {one.node_id: one.parts.distance.ToMilliseconds() for one in explained.candidates}
        assert ways == {"n1": 0, "n2": 250}
