"""Memory that instances take for themselves: placement keeps within what nodes tell of it."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sllm import errors
from sllm.control.cluster.instances import Instance, InstanceState, Planned
from sllm.control.cluster.needs import Need
from sllm.control.cluster.nodes import Kind, NodeMemory, NodeView
from sllm.control.cluster.tiers import Tier
from sllm.control.cluster.usage import Use
from sllm.control.placement import room
from sllm.control.placement.decisions import Demand, Start, Wait
from sllm.control.placement.fitting import check_fits
from sllm.control.placement.placement import place
from sllm.control.placement.ranking import Ranking
from tests.control.placement.test_device_room import device
from tests.control.shapes import copy, facts, instance, need, snapshot, view

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


@settings(max_examples=50)
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


@settings(max_examples=50)
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
