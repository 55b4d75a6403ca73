"""Decisions: by hand where they can be read, and by random clusters for what must always hold."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sllm import errors
from sllm.control.cluster.instances import Instance, InstanceState, Planned
from sllm.control.cluster.needs import Need, need_of
from sllm.control.cluster.nodes import NodeView
from sllm.control.cluster.snapshot import Snapshot
from sllm.control.cluster.tiers import Tier
from sllm.control.cluster.usage import Use
from sllm.control.placement import fitting, room
from sllm.control.placement.decisions import Blocked, Demand, Reuse, Start, Wait
from sllm.control.placement.placement import place
from tests.control.shapes import copy, deployment, facts, instance, need, snapshot, view

NEED = need()


# --- spreading --------------------------------------------------------------------------------


def crowded(*counts: int, copies: bool = True) -> Snapshot:
    """Nodes with so many instances of the deployment, the first of which has the weights."""
    views = []
    for index, count in enumerate(counts):
        key = f"n{index}"
        ours = [instance(f"{key}-{one}", "m", node_id=key, kv=10) for one in range(count)]
        held = [copy(tier=Tier.DRAM)] if index == 0 and copies else []
        views.append(view(facts(key), instances=ours, copies=held))
    return snapshot(*views)


@pytest.mark.parametrize(
    ("counts", "chosen"),
    [((0, 0), "n0"), ((1, 0), "n1"), ((1, 1), "n0"), ((2, 1, 1), "n1"), ((1, 2, 0), "n2")],
)
def test_the_nearest_of_the_nodes_with_the_fewest_instances(
    counts: tuple[int, ...], chosen: str
) -> None:
    action = place(crowded(*counts), Demand(NEED, waiting=0)).action
    assert isinstance(action, Start)
    assert action.node_id == chosen


def test_nobody_ends_so_that_instances_are_spread() -> None:
    """The other node would have to end an idle instance of another deployment."""
    near = view(facts("n1"), instances=[instance("i1", "m", kv=10)], copies=[copy(tier=Tier.DRAM)])
    full = view(facts("n2", kv=100), instances=[instance("i2", node_id="n2", kv=100)])
    action = place(snapshot(near, full), Demand(NEED, waiting=0)).action
    assert isinstance(action, Start)
    assert (action.node_id, action.victims) == ("n1", ())


# --- reuse ------------------------------------------------------------------------------------


def test_a_ready_instance_with_a_free_slot_is_reused() -> None:
    ours = [instance("i1", "m"), instance("i2", "m")]
    cluster = snapshot(view(instances=ours), uses={"i1": Use("n1", 1, 0.0)})
    assert place(cluster, Demand(NEED)).action == Reuse(ours[1])


def test_full_starting_and_draining_instances_are_not_reused() -> None:
    ours = [
        instance("i1", "m"),
        instance("i2", "m", state=InstanceState.STARTING),
        instance("i3", "m", state=InstanceState.DRAINING),
    ]
    cluster = snapshot(view(instances=ours), uses={"i1": Use("n1", 2, 0.0)})
    assert isinstance(place(cluster, Demand(NEED)).action, Start)


def test_an_instance_that_nobody_waits_for_is_started_beside_an_idle_one() -> None:
    cluster = snapshot(view(instances=[instance("i1", "m")]))
    assert isinstance(place(cluster, Demand(NEED, waiting=0)).action, Start)


@pytest.mark.parametrize("slot_wait", [0.5, 1.0])
def test_a_slot_that_is_free_sooner_is_waited_for(slot_wait: float) -> None:
    """The start would take a second: the node has the weights."""
    busy = {"i1": Use("n1", 2, 0.0)}
    cluster = snapshot(
        view(instances=[instance("i1", "m")], copies=[copy(tier=Tier.DRAM)]), uses=busy
    )
    assert isinstance(place(cluster, Demand(NEED, slot_wait=slot_wait)).action, Wait)


@pytest.mark.parametrize(("slot_wait", "waiting"), [(1.5, 1), (0.0, 0)])
def test_an_instance_is_started_that_is_ready_before_a_slot_or_is_wanted_in_any_case(
    slot_wait: float, waiting: int
) -> None:
    busy = {"i1": Use("n1", 2, 0.0)}
    cluster = snapshot(
        view(instances=[instance("i1", "m")], copies=[copy(tier=Tier.DRAM)]), uses=busy
    )
    demand = Demand(NEED, slot_wait=slot_wait, waiting=waiting)
    assert isinstance(place(cluster, demand).action, Start)


# --- start ------------------------------------------------------------------------------------


def test_the_nearest_weights_win() -> None:
    cluster = snapshot(
        view(facts("n1")),
        view(facts("n2"), copies=[copy()]),
        view(facts("n3"), copies=[copy(tier=Tier.DRAM)]),
    )
    action = place(cluster, Demand(NEED)).action
    assert action == Start("n3", 100, 1.0)


def test_a_node_of_unknown_speed_is_the_last_resort() -> None:
    fast, unknown = view(facts("n2")), view(facts("n1", links={}, init=None))
    alone = place(snapshot(unknown), Demand(NEED)).action
    assert alone == Start("n1", 100, None)
    cluster = replace(snapshot(fast, unknown), typical=snapshot(unknown).typical)
    both = place(cluster, Demand(NEED)).action
    assert isinstance(both, Start)
    assert both.node_id == "n2"


def test_of_equals_the_one_with_more_room_is_taken() -> None:
    cluster = snapshot(
        view(facts("n1"), instances=[instance(kv=50)]), view(facts("n2"), instances=[])
    )
    action = place(cluster, Demand(NEED)).action
    assert isinstance(action, Start)
    assert action.node_id == "n2"


def test_an_instance_gets_what_the_node_has_if_that_is_less() -> None:
    action = place(snapshot(view(facts(kv=60))), Demand(NEED)).action
    assert isinstance(action, Start)
    assert action.kv_bytes == 60


def test_the_least_recently_used_idle_instance_makes_room() -> None:
    others = [instance(f"i{index}", f"o{index}", kv=400) for index in range(2)]
    node = view(facts(kv=850), instances=others)
    uses = {"i0": Use("n1", 0, 5.0), "i1": Use("n1", 0, 3.0)}
    action = place(snapshot(node, uses=uses), Demand(NEED)).action
    assert isinstance(action, Start)
    assert action.victims == ("i1",)


def test_no_more_instances_end_than_must() -> None:
    others = [instance("small", "o1", kv=50), instance("large", "o2", kv=450)]
    node = view(facts(kv=500), instances=others)
    uses = {"small": Use("n1", 0, 1.0), "large": Use("n1", 0, 2.0)}
    action = place(snapshot(node, uses=uses), Demand(NEED)).action
    assert isinstance(action, Start)
    assert action.victims == ("large",)


def test_what_runs_for_nobody_makes_room_before_what_is_idle() -> None:
    others = [instance("idle", "o1", kv=450), instance("batch", "o2", kv=450)]
    node = view(facts(kv=900), instances=others)
    uses = {
        "idle": Use("n1", 0, 1.0, demand=3.0, asked_for=True),
        "batch": Use("n1", 4, 2.0, background=4),
    }
    around = replace(snapshot(node, uses=uses), needs={"o1": need("o1"), "o2": need("o2")})
    action = place(around, Demand(NEED)).action
    assert isinstance(action, Start)
    assert action.victims == ("batch",)


@pytest.mark.parametrize(
    ("use", "ends"),
    [
        (Use("n1", 0, 0.0), True),
        (Use("n1", 0, 0.0, asked_for=True), False),
        (Use("n1", 1, 0.0, background=1), False),
        (Use("n1", 1, 0.0, asked_for=True), False),
    ],
)
def test_for_what_nobody_waits_for_only_what_nobody_has_used_ends(use: Use, ends: bool) -> None:
    node = view(facts(kv=100), instances=[instance("i1", kv=100)])
    action = place(
        snapshot(node, uses={"i1": use}), Demand(NEED, waiting=0, background=True)
    ).action
    assert isinstance(action, Start) == ends


def test_leased_weights_make_room_when_their_instance_ends() -> None:
    held = copy("x", Tier.DRAM, size=950, leased=True)
    node = view(copies=[held], instances=[instance(digest="x")])
    action = place(snapshot(node), Demand(NEED)).action
    assert isinstance(action, Start)
    assert action.victims == ("i1",)


def test_weights_that_a_load_leases_are_no_room() -> None:
    node = view(copies=[copy("x", Tier.DRAM, size=950, leased=True)])
    assert isinstance(place(snapshot(node), Demand(NEED)).action, Wait)


def test_unleased_weights_are_room() -> None:
    node = view(copies=[copy("x", Tier.DRAM, size=950)])
    assert isinstance(place(snapshot(node), Demand(NEED)).action, Start)


def test_weights_that_are_shared_are_held_once() -> None:
    held = copy("d", Tier.DRAM, size=800, leased=True)
    node = view(copies=[held], instances=[instance(digest="d")])
    action = place(snapshot(node), Demand(need(size=800))).action
    assert isinstance(action, Start)
    assert action.victims == ()


def test_what_was_decided_before_holds_its_room() -> None:
    starting = instance("i9", "o", state=InstanceState.STARTING, kv=950)
    node = replace(view(), planned={"i9": Planned(starting, "x", 100)}, memo={})
    assert isinstance(place(snapshot(node), Demand(NEED)).action, Wait)
    large = Planned(replace(starting, kv_bytes=1), "x", 950)
    node = replace(view(), planned={"i9": large}, memo={})
    assert isinstance(place(snapshot(node), Demand(NEED)).action, Wait)


def test_what_is_leaving_holds_none() -> None:
    node = replace(view(instances=[instance(kv=1000)]), leaving=frozenset({"i1"}), memo={})
    action = place(snapshot(node), Demand(NEED)).action
    assert isinstance(action, Start)
    assert action.victims == ()


# --- wait -------------------------------------------------------------------------------------


def _full(in_flight: int = 1) -> Snapshot:
    return snapshot(view(instances=[instance(kv=1000)]), uses={"i1": Use("n1", in_flight, 0.0)})


def test_busy_instances_are_drained_for_those_who_have_waited_long_only() -> None:
    assert place(_full(), Demand(NEED)).action == Wait("every node that is large enough is busy")
    action = place(_full(), Demand(NEED, impatient=True)).action
    assert isinstance(action, Wait)
    assert (action.drain, action.node_id) == (("i1",), "n1")


def test_what_drains_already_is_waited_for() -> None:
    draining = instance("i1", kv=500, state=InstanceState.DRAINING)
    cluster = snapshot(
        view(facts(kv=1000), instances=[draining, instance("i2", kv=500)]),
        uses={"i2": Use("n1", 1, 0.0)},
    )
    action = place(cluster, Demand(NEED, impatient=True)).action
    assert isinstance(action, Wait)
    assert (action.drain, action.node_id) == ((), "n1")


def test_the_fewest_requests_are_waited_for() -> None:
    cluster = snapshot(
        view(facts("n1"), instances=[instance("i1", kv=1000)]),
        view(facts("n2"), instances=[instance("i2", node_id="n2", kv=1000)]),
        uses={"i1": Use("n1", 5, 0.0), "i2": Use("n2", 1, 0.0)},
    )
    action = place(cluster, Demand(NEED, impatient=True)).action
    assert isinstance(action, Wait)
    assert action.drain == ("i2",)


def test_where_room_is_made_for_an_older_request_nobody_starts() -> None:
    decision = place(snapshot(view()), Demand(NEED, closed={"n1": "room for an older one"}))
    assert isinstance(decision.action, Wait)
    assert decision.candidates[0].rejected == "room for an older one"


@pytest.mark.parametrize(
    ("cluster", "demand", "blocked"),
    [
        (snapshot(), Demand(NEED), Blocked.NO_NODES),
        (snapshot(view(facts(dram=99))), Demand(NEED), Blocked.TOO_SMALL),
        (snapshot(view(facts(kv=9))), Demand(NEED), Blocked.TOO_SMALL),
        (snapshot(view()), Demand(NEED, failed=frozenset({"n1"})), Blocked.FAILED),
        (
            snapshot(view(instances=[instance(kv=1000)]), protected=["i1"]),
            Demand(NEED),
            Blocked.KEPT,
        ),
    ],
)
def test_what_waiting_does_not_help_is_told(
    cluster: Snapshot, demand: Demand, blocked: Blocked
) -> None:
    action = place(cluster, demand).action
    assert isinstance(action, Wait)
    assert action.blocked is blocked


def test_a_model_that_fits_nowhere_is_refused_with_numbers() -> None:
    with pytest.raises(errors.ModelTooLarge, match=r"100 bytes.*99"):
        fitting.check_fits(snapshot(view(facts(dram=99))), NEED)
    fitting.check_fits(snapshot(view(facts(dram=99)), view(facts("n2"))), NEED)
    fitting.check_fits(snapshot(), NEED)


def with_engines(node_id: str, **ready: bool) -> NodeView:
    return view(replace(facts(node_id), engines=ready))


def test_a_model_whose_engine_no_node_has_is_refused() -> None:
    on_vllm = need(engine="vllm")
    with pytest.raises(errors.EngineUnavailable, match="vllm, which no node has"):
        fitting.check_fits(snapshot(view()), on_vllm)
    fitting.check_fits(snapshot(view(), with_engines("n2", vllm=True)), on_vllm)
    action = place(snapshot(view()), Demand(on_vllm)).action
    assert isinstance(action, Wait)
    assert action.blocked is Blocked.NO_ENGINE


def test_a_node_without_the_engine_is_never_taken() -> None:
    on_vllm = need(engine="vllm")
    cluster = snapshot(
        view(copies=[copy(tier=Tier.DRAM)]),
        with_engines("n2", vllm=True),
    )
    decision = place(cluster, Demand(on_vllm))
    assert isinstance(decision.action, Start)
    assert decision.action.node_id == "n2"
    one, two = decision.candidates
    assert one.unfit
    assert one.rejected == "n1: does not have the engine vllm"
    assert two.rejected is None


def test_an_engine_that_is_ready_is_preferred_to_one_that_is_not() -> None:
    cluster = snapshot(with_engines("n1", vllm=False), with_engines("n2", vllm=True))
    action = place(cluster, Demand(need(engine="vllm"))).action
    assert isinstance(action, Start)
    assert action.node_id == "n2"
    only = snapshot(with_engines("n1", vllm=False))
    assert isinstance(place(only, Demand(need(engine="vllm"))).action, Start)


def test_whichever_engine_will_do_if_none_is_named() -> None:
    cluster = snapshot(with_engines("n1", vllm=True))
    assert isinstance(place(cluster, Demand(need(engine=""))).action, Start)


def test_every_candidate_is_told_with_its_estimate_or_the_reason() -> None:
    cluster = snapshot(
        view(facts("n1")),
        view(facts("n2", dram=1)),
        view(facts("n3"), instances=[instance("i3", node_id="n3", kv=1000)]),
        uses={"i3": Use("n3", 1, 0.0)},
    )
    one, two, three = place(cluster, Demand(NEED)).candidates
    assert one.estimate == pytest.approx(2.0)
    assert one.rejected is None
    assert two.unfit
    assert three.rejected == "no room: 100 bytes short for KV cache"


def test_a_deployments_need_follows_from_its_model() -> None:
    small = need_of(deployment(context_tokens=100, kv_bytes_per_token=3))
    assert (small.kv_bytes, small.least_kv_bytes) == (1600 * 3, 100 * 3)
    large = need_of(deployment(context_tokens=10**6, kv_bytes_per_token=3))
    assert (large.kv_bytes, large.least_kv_bytes) == (8192 * 3, 512 * 3)


# --- what must always hold --------------------------------------------------------------------

MODELS = [need(f"m{index}", size=100 + 60 * index, digest=f"d{index}") for index in range(5)]


@st.composite
def clusters(draw: st.DrawFn) -> Snapshot:
    views, uses, protected = [], {}, []
    for node_index in range(draw(st.integers(0, 4))):
        node_id = f"n{node_index}"
        of = facts(node_id, dram=draw(st.integers(50, 600)), kv=draw(st.integers(5, 500)))
        copies, instances, free = [], [], of.kv_capacity
        for model in draw(st.lists(st.sampled_from(MODELS), unique=True, max_size=4)):
            one = _instance(draw, model, node_id, free)
            if one:
                free -= one.kv_bytes
                instances.append(one)
                in_flight = draw(st.integers(0, 2))
                uses[one.instance_id] = Use(
                    node_id,
                    in_flight,
                    draw(st.floats(0, 9)),
                    background=draw(st.integers(0, in_flight)),
                    asked_for=draw(st.booleans()),
                )
                if draw(st.booleans()):
                    protected.append(one.instance_id)
            size = model.checkpoint.size_bytes
            copies.append(copy(model.checkpoint.digest, Tier.DRAM, size=size, leased=bool(one)))
        views.append(view(of, copies=copies, instances=instances))
    return snapshot(*views, uses=uses, protected=protected)


def _instance(draw: st.DrawFn, model: Need, node_id: str, free: int) -> Instance | None:
    if free <= 0 or not draw(st.booleans()):
        return None
    return instance(
        f"{node_id}-{model.deployment}",
        model.deployment,
        node_id=node_id,
        kv=draw(st.integers(1, free)),
        state=draw(st.sampled_from([InstanceState.READY, InstanceState.DRAINING])),
        digest=model.checkpoint.digest,
    )


@given(clusters(), st.sampled_from(MODELS), st.booleans(), st.booleans())
def test_a_start_never_exceeds_a_budget_nor_ends_what_is_busy_or_kept(
    cluster: Snapshot, wanted: Need, impatient: bool, background: bool
) -> None:
    demand = Demand(wanted, impatient=impatient, background=background)
    action = place(cluster, demand).action
    if not isinstance(action, Start):
        return
    node = cluster.nodes[action.node_id]
    left = room.shortage(node, wanted, action.kv_bytes, frozenset(action.victims))
    assert left.none
    assert action.kv_bytes >= wanted.least_kv_bytes
    for victim in action.victims:
        use = cluster.uses[victim]
        assert use.in_flight == use.background
        assert not background or not (use.in_flight or use.asked_for)
        assert victim not in cluster.protected
        assert node.instances[victim].state is InstanceState.READY
        assert node.instances[victim].deployment != wanted.deployment


@given(clusters(), st.sampled_from(MODELS))
def test_a_drain_makes_room_and_spares_what_is_kept(cluster: Snapshot, wanted: Need) -> None:
    action = place(cluster, Demand(wanted, impatient=True)).action
    if not isinstance(action, Wait) or not action.node_id:
        return
    node = cluster.nodes[action.node_id]
    draining = {one.instance_id for one in node.present if one.state is InstanceState.DRAINING}
    kv_bytes = min(wanted.kv_bytes, node.facts.kv_capacity)
    gone = frozenset(action.drain) | draining
    assert room.shortage(node, wanted, kv_bytes, gone).none
    assert not set(action.drain) & cluster.protected


@given(clusters(), st.sampled_from(MODELS), st.booleans())
def test_one_snapshot_gives_one_decision(cluster: Snapshot, wanted: Need, impatient: bool) -> None:
    demand = Demand(wanted, impatient=impatient)
    turned = replace(cluster, nodes=dict(reversed(list(cluster.nodes.items()))))
    fresh = {key: replace(node, memo={}) for key, node in turned.nodes.items()}
    first, again = place(cluster, demand), place(replace(turned, nodes=fresh), demand)
    assert first.action == again.action
    assert first.candidates == again.candidates


@given(clusters(), st.sampled_from(MODELS))
def test_a_start_is_the_best_candidate(cluster: Snapshot, wanted: Need) -> None:
    """Or one that doubles up on fewer of its deployment's instances, and ends nothing for it."""
    decision = place(cluster, Demand(wanted, waiting=0))
    open_to_it = [one for one in decision.candidates if one.rejected is None]
    if isinstance(decision.action, Start):
        best = min(one.estimate for one in open_to_it if one.estimate is not None)
        soonest = {one.node_id for one in open_to_it if one.estimate == best}
        chosen = decision.action.node_id
        crowd = Counter(one.node_id for one in cluster.instances.get(wanted.deployment, ()))
        if chosen not in soonest:
            assert crowd[chosen] < max(crowd[one] for one in soonest)
            assert not decision.action.victims
    else:
        assert not open_to_it
