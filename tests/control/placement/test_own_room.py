"""Memory that instances take for themselves: placement keeps within what nodes tell of it."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sllm import errors
from sllm.control.cluster.instances import Instance, InstanceState, Planned
from sllm.control.cluster.needs import Need
from sllm.control.cluster.nodes import Held, Kind, NodeMemory, NodeView
from sllm.control.cluster.snapshot import UNKNOWN
from sllm.control.cluster.tiers import Copies, Hold, Tier
from sllm.control.cluster.usage import Use
from sllm.control.placement import room
from sllm.control.placement.decisions import Demand, Start, Wait
from sllm.control.placement.fitting import check_fits
from sllm.control.placement.placement import place
from sllm.control.placement.ranking import Ranking
from sllm.control.placement.start_estimate import need_on
from tests.control.placement.test_device_room import device
from tests.control.shapes import copy, facts, instance, need, snapshot, view
from tests.properties import examples

NEED = need("m", digest="d", kv=1, least_kv=1)
EXPECTED = 64


def node(
    node_id: str,
    capacity: int,
    *instances: Instance,
    most: int = 0,
    planned: tuple[Instance, ...] = (),
) -> NodeView:
    memory = NodeMemory(10**6, capacity, 0, EXPECTED, most)
    of = replace(facts(node_id, dram=10**6, kv=10**6), memory=memory)
    held = {one.digest for one in instances if one.digest}
    copies = [copy(digest, Tier.DRAM, leased=True) for digest in sorted(held)]
    found = view(of, copies=copies, instances=instances)
    plans = {one.instance_id: Planned(one, "s", 100) for one in planned}
    return replace(found, planned=plans, memo={})


def running(
    key: str,
    node_id: str,
    own: int = 0,
    digest: str = "other",
    engine: str = "",
    private: int | None = None,
) -> Instance:
    one = instance(key, digest, node_id=node_id, kv=1, digest=digest)
    return replace(one, own_bytes=own, engine=engine, private_bytes=private)


def copying(private: int | None) -> Need:
    """A need of which this is known, and nothing else."""
    return replace(NEED, engine="vllm", private_bytes=private)


@pytest.mark.parametrize(
    ("there", "capacity", "lacking"),
    [
        ((), EXPECTED, 0),
        ((running("a", "n1"),), 2 * EXPECTED - 1, 1),  # none is measured: each as expected
        ((running("a", "n1", own=30),), 59, 1),  # as the other
        ((running("a", "n1", own=30), running("b", "n1", own=50)), 120, 0),  # as both on average
        ((running("a", "n1", own=30), running("b", "n1", own=400, digest="d")), 830, 0),
        ((running("a", "n1", own=30), running("b", "n1", own=400, digest="d")), 829, 1),
        ((running("a", "n1", own=30), running("b", "n1")), 90, 0),  # one not yet measured
    ],
)
def test_what_was_measured_on_a_node_counts_for_the_next(
    there: tuple[Instance, ...], capacity: int, lacking: int
) -> None:
    short = room.shortage(node("n1", capacity, *there), NEED, 1)
    assert (max(0, short.own_bytes), short.none) == (lacking, not lacking)


def test_planned_starts_hold_memory_before_they_are_measured() -> None:
    starting = instance("p", "s", state=InstanceState.STARTING, kv=1)
    here = node("n1", 2 * EXPECTED - 1, planned=(starting,))
    assert room.shortage(here, NEED, 1).own_bytes == 1


def test_planned_starts_hold_memory_for_their_copies() -> None:
    """Two first starts: nothing was measured of either."""
    starting = instance("p", "s", state=InstanceState.STARTING, kv=1)
    starting = replace(starting, engine="vllm", private_bytes=400)
    needed = EXPECTED + 400 + EXPECTED + 300
    for capacity, lacking in ((needed, 0), (needed - 1, 1)):
        here = node("n1", capacity, planned=(starting,))
        assert max(0, room.shortage(here, copying(300), 1).own_bytes) == lacking


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        ((), EXPECTED + 300),
        ((running("a", "n1", 90, "d", "vllm", 300),), 90),  # measured is better than estimated
        ((running("a", "n1", 30, "d", "transformers", 0),), 30 + 300),  # that engine copies none
        ((running("a", "n1", 500, "other", "vllm", 450),), EXPECTED + 300),
        ((running("a", "n1", 0, "d", "vllm", 300),), EXPECTED + 300),  # ready, not yet measured
    ],
)
def test_what_is_copied_counts_until_it_was_measured(
    there: tuple[Instance, ...], expected: int
) -> None:
    here = node("n1", 5000, *there)
    free = 5000 - here.own_held
    assert room.shortage(here, copying(300), 1).own_bytes == expected - free


def test_a_first_start_goes_where_its_copies_have_room() -> None:
    cluster = snapshot(node("n1", 300), node("n2", 400))
    action = place(cluster, Demand(replace(copying(300), engine="transformers"))).action
    assert isinstance(action, Start)
    assert action.node_id == "n2"


def test_a_model_whose_copies_fit_no_node_is_refused() -> None:
    need_of_copies = replace(copying(300), engine="transformers")
    with pytest.raises(errors.ModelTooLarge, match="364 bytes of memory for an instance itself"):
        check_fits(snapshot(node("n1", 363)), need_of_copies)
    check_fits(snapshot(node("n1", 364)), need_of_copies)
    runs = running("a", "n1", 200, "d", "transformers", 300)
    check_fits(snapshot(node("n1", 363, runs)), need_of_copies)


def test_on_devices_copies_take_none_of_that_memory() -> None:
    devices = replace(node("n1", EXPECTED).facts, devices=(device(),))
    there = view(devices)
    assert there.own_expected(Kind("d", "vllm"), 300) == EXPECTED
    assert room.beside(there, 300) == 0
    ranked = Ranking(snapshot(there), replace(copying(300), engine="transformers")).best_first()
    assert [one.lacks_room for one in ranked] == [False]


def over_ready(
    there: NodeView, private: int | None, tier: Tier = Tier.SSD, size: int = 100
) -> NodeView:
    """The node, with the weights as they were made ready, on which so much was measured."""
    made = replace(copy("ready", tier, size=size), made_of="d", made_for="vllm")
    made = replace(made, private_bytes=private)
    return replace(there, copies=Copies.of([*there.copies.values(), made]), memo={})


def short(there: NodeView, wanted: Need) -> room.Shortage:
    return room.shortage(there, need_on(there, wanted, UNKNOWN), 1)


@pytest.mark.parametrize("tier", [Tier.SSD, Tier.DRAM])
def test_over_ready_made_weights_a_start_takes_what_was_measured_over_them(tier: Tier) -> None:
    full = node("n1", EXPECTED + 20)
    assert short(full, copying(300)).own_bytes == 280
    assert short(over_ready(full, None, tier), copying(300)).own_bytes == 280, "not yet measured"
    assert short(over_ready(full, 20, tier), copying(300)).none
    assert short(over_ready(full, 21, tier), copying(300)).own_bytes == 1
    ranks = replace(copying(300), tensor_parallel=2)  # what one process reads is not what two read
    assert short(over_ready(full, 20, tier), ranks).own_bytes == 280


def test_instances_over_ready_made_weights_tell_nothing_of_those_that_copy() -> None:
    ready = replace(running("a", "n1", 70, "d", "vllm", 300), ready_made=True)
    plain = running("b", "n1", 400, "d", "vllm", 300)
    here = node("n1", 5000, ready)
    assert short(here, copying(300)).own_bytes == EXPECTED + 300 + 70 - 5000
    here = over_ready(node("n1", 5000, plain), 6, Tier.DRAM)
    assert short(here, copying(300)).own_bytes == EXPECTED + 6 + 400 - 5000


def test_a_planned_start_over_ready_made_weights_holds_what_was_measured() -> None:
    starting = instance("p", "s", state=InstanceState.STARTING, kv=1)
    starting = replace(starting, engine="vllm", private_bytes=300, ready_made=True)
    here = over_ready(node("n1", 5000), 6)
    plan = Planned(starting, "d", 120, "vllm")
    here = replace(here, planned={"p": plan}, memo={})
    assert here.own_held == EXPECTED + 6
    assert here.weights_held == {Held("d", "vllm"): 120}


@pytest.mark.parametrize(("size", "lacking"), [(100, 0), (250, 50), (300, 100)])
def test_the_pool_has_to_have_room_for_the_form_that_is_taken(size: int, lacking: int) -> None:
    """What is published is pinned beside it, and stays."""
    pinned = replace(copy("d", Tier.DRAM, size=100, leased=True), holds=(Hold("pin"),))
    tight = facts(dram=300)
    here = over_ready(view(tight, copies=[pinned]), 0, Tier.DRAM, size)
    assert max(0, short(here, copying(0)).weights_bytes) == lacking
    assert short(view(tight, copies=[pinned]), copying(0)).none


def test_what_is_larger_than_the_pool_once_it_is_ready_is_taken_as_it_is_published() -> None:
    here = over_ready(view(facts(dram=300)), 0, size=301)
    assert need_on(here, copying(0), UNKNOWN).made_for == ""
    assert room.too_small(here, need_on(here, copying(0), UNKNOWN)) is None


def test_a_model_goes_where_only_its_ready_made_weights_leave_room() -> None:
    full = node("n1", EXPECTED + 20)
    wanted = replace(copying(300), engine="transformers")
    with pytest.raises(errors.ModelTooLarge):
        check_fits(snapshot(full), wanted)
    made = over_ready(full, 20)
    made = replace(
        made,
        copies=Copies.of([replace(one, made_for="transformers") for one in made.copies.values()]),
    )
    check_fits(snapshot(made), wanted)
    decision = place(snapshot(made), Demand(wanted))
    assert isinstance(decision.action, Start)
    (candidate,) = decision.candidates
    assert candidate.rejected is None


def test_a_node_without_memory_left_is_passed_over() -> None:
    full = node("n1", 100, running("a", "n1", own=60))
    action = place(snapshot(full, node("n2", 100)), Demand(NEED)).action
    assert isinstance(action, Start)
    assert action.node_id == "n2"


def test_an_idle_instance_ends_where_its_memory_is_needed() -> None:
    action = place(snapshot(node("n1", 100, running("a", "n1", own=60))), Demand(NEED)).action
    assert isinstance(action, Start)
    assert action.victims == ("a",)


@pytest.mark.parametrize("here", [node("n1", 60, running("a", "n1", own=60), most=9)])
def test_a_node_that_is_too_small_for_an_instance_is_told_with_the_numbers(here: NodeView) -> None:
    with pytest.raises(errors.ModelTooLarge, match="64 bytes of memory for an instance itself, 60"):
        check_fits(snapshot(here), NEED)
    assert isinstance(place(snapshot(here), Demand(NEED)).action, Wait)


def test_what_lacks_is_told() -> None:
    busy = {"a": Use("n1", 1, 0.0)}
    short = node("n1", 100, running("a", "n1", own=60))
    many = node("n1", 1000, running("a", "n1", own=60), most=1)
    for here, told in ((short, "20 bytes short for the instance itself"), (many, "as it may")):
        decision = place(snapshot(here, uses=busy), Demand(NEED))
        assert isinstance(decision.action, Wait)
        assert told in str(decision.candidates[0].rejected)


own_sizes = st.sampled_from([0, 0, 30, 60, 400])
copied = st.sampled_from([None, 0, 50, 300])
engines = st.sampled_from(["", "transformers", "vllm"])
needs = st.builds(
    lambda digest, private: replace(need("m", digest=digest, kv=1), private_bytes=private),
    st.sampled_from(["d", "fourth"]),
    copied,
)


@st.composite
def nodes(draw: st.DrawFn, node_id: str) -> NodeView:
    digests = draw(st.lists(st.sampled_from(["d", "other", "third"]), max_size=4))
    there = [
        running(
            f"{node_id}-{number}", node_id, draw(own_sizes), digest, draw(engines), draw(copied)
        )
        for number, digest in enumerate(digests)
    ]
    plan = instance(f"{node_id}-p", "s", node_id=node_id, state=InstanceState.STARTING, kv=1)
    plan = replace(plan, private_bytes=draw(copied))
    planned = (plan,) if draw(st.booleans()) else ()
    capacity = draw(st.integers(0, 900))
    return node(node_id, capacity, *there, most=draw(st.integers(0, 5)), planned=planned)


@examples(50)
@given(st.tuples(nodes("n1"), nodes("n2"), nodes("n3")), needs)
def test_all_nodes_at_once_are_judged_as_each_by_itself(
    found: tuple[NodeView, NodeView, NodeView], wanted: Need
) -> None:
    cluster = snapshot(*found)
    ranked = {one.node_id: one.lacks_room for one in Ranking(cluster, wanted).best_first()}
    for one in found:
        assert (one.node_id in ranked) == (room.too_small(one, wanted) is None)
        lacks = not room.shortage(one, wanted, 1).none
        assert ranked.get(one.node_id, lacks) == lacks


@examples(50)
@given(st.tuples(nodes("n1"), nodes("n2"), nodes("n3")), needs)
def test_no_start_takes_more_than_a_node_has(
    found: tuple[NodeView, NodeView, NodeView], wanted: Need
) -> None:
    action = place(snapshot(*found), Demand(wanted)).action
    if isinstance(action, Start):
        chosen = next(one for one in found if one.node_id == action.node_id)
        memory = chosen.facts.memory
        assert memory
        staying = [one for one in chosen.present if one.instance_id not in action.victims]
        kind = Kind.of(wanted.checkpoint.digest, wanted.engine)
        taken = sum(map(chosen.own_bytes, staying))
        taken += chosen.own_expected(kind, wanted.private_bytes)
        assert taken <= memory.capacity_bytes
        assert not memory.max_instances or len(staying) < memory.max_instances


def test_weights_that_the_node_knows_by_their_source_alone_are_had_already() -> None:
    """A deployment's digest may not be known where the node's is."""
    of = facts("n1", dram=100, kv=1000)
    here = view(of, copies=[copy("d", Tier.DRAM, leased=True, sources=("file:///m",))])
    assert room.shortage(here, need(size=100, digest=""), 10).none
