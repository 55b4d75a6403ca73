"""Decisions on small random clusters, against a search of everything that could be done."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain, combinations, permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sllm.control.cluster.init_times import InitKey, InitTime, InitTimes
from sllm.control.cluster.instances import Instance, InstanceState, Planned
from sllm.control.cluster.needs import Need
from sllm.control.cluster.nodes import NodeView
from sllm.control.cluster.snapshot import Snapshot
from sllm.control.cluster.tiers import Copy, Hold, Link, Tier
from sllm.control.cluster.usage import MigrationCost, Running, Use
from sllm.control.placement import room
from sllm.control.placement.decisions import Demand, MigrateThenStart, Start, Wait
from sllm.control.placement.placement import SPREAD_SECONDS, place
from sllm.control.placement.start_estimate import start_seconds
from tests.control.shapes import copy, facts, instance, need, snapshot, view
from tests.properties import examples

SIZES = (100, 170, 240, 310)
MODELS = [need(f"m{size}", size=size, kv=200, digest=f"d{size}") for size in SIZES]
READY = (*[InstanceState.READY] * 4, InstanceState.DRAINING)


# --- random clusters --------------------------------------------------------------------------


@st.composite
def nodes(draw: st.DrawFn, node_id: str) -> tuple[NodeView, dict[str, Use]]:
    """A node with some weights, at most one instance of each model, and perhaps a start."""
    links = {
        (Tier.REMOTE, Tier.SSD): Link(draw(st.sampled_from([50.0, 100.0, 130.0])), 0),
        (Tier.SSD, Tier.DRAM): Link(500.0, draw(st.integers(0, 300))),
    }
    kv = draw(st.sampled_from([200, 210, 400, 410, 600]))
    of = facts(node_id, dram=draw(st.integers(310, 900)), kv=kv, links=links)
    time = draw(st.floats(0.1, 2.0))
    seen = {InitKey("d100", "transformers"): InitTime(100, time, time)}
    of = replace(of, init_times=InitTimes(seen))
    running, copies, uses, free = [], [], {}, of.kv_capacity
    for model in draw(st.lists(st.sampled_from(MODELS), unique=True, min_size=1, max_size=3)):
        one = _instance(draw, model, node_id, free)
        copies += _copies(draw, model, served=bool(one))
        if one:
            running.append(one)
            free -= one.kv_bytes
            in_flight = draw(st.sampled_from([1, 1, 2, 0]))
            uses[one.instance_id] = Use(node_id, in_flight, draw(st.floats(0, 9)))
    node = view(of, copies=copies, instances=running)
    if free > 20 and draw(st.booleans()):
        key, state = f"{node_id}-s", InstanceState.STARTING
        planned = Planned(instance(key, "s", node_id=node_id, state=state, kv=20), "ds", 50)
        node = replace(node, planned={key: planned}, memo={})
    return node, uses


def _instance(draw: st.DrawFn, model: Need, node_id: str, free: int) -> Instance | None:
    if free < model.least_kv_bytes or draw(st.integers(0, 3)) == 0:
        return None
    name, state = f"{node_id}-{model.deployment}", draw(st.sampled_from(READY))
    kv = min(free, model.kv_bytes)
    digest = model.checkpoint.digest
    return instance(name, model.deployment, node_id=node_id, state=state, kv=kv, digest=digest)


def _copies(draw: st.DrawFn, model: Need, *, served: bool) -> list[Copy]:
    digest, size = model.checkpoint.digest, model.checkpoint.size_bytes
    pinned = (Hold("pin", None),) if draw(st.integers(0, 5)) == 0 else ()
    held = copy(digest, Tier.DRAM, size=size, leased=served or bool(pinned))
    on_ssd = copy(digest, Tier.SSD, size=size)
    if served or pinned:
        return [on_ssd, replace(held, holds=pinned)]
    return [on_ssd, held] if draw(st.booleans()) else [on_ssd]


@st.composite
def clusters(draw: st.DrawFn) -> Snapshot:
    """Up to four nodes, what their instances do, and what moving it costs."""
    parts = [draw(nodes(f"n{index}")) for index in range(draw(st.integers(3, 4)))]
    uses = {key: use for _, ones in parts for key, use in ones.items()}
    kept = draw(st.sets(st.sampled_from(sorted(uses)), max_size=1)) if uses else set()
    tokens = st.integers(1, 90)
    running = {
        key: tuple(Running(f"{key}-{one}", draw(tokens)) for one in range(use.in_flight))
        for key, use in uses.items()
    }
    return replace(
        snapshot(*(node for node, _ in parts), uses=uses, protected=kept),
        needs={one.deployment: one for one in MODELS},
        running=running,
        migration=draw(st.sampled_from([None, *[MigrationCost(0.01, 0.1)] * 3])),
        stop_seconds=draw(st.sampled_from([0.0, 0.3])),
    )


@st.composite
def demands(draw: st.DrawFn) -> Demand:
    """What anyone may ask for."""
    some = st.sampled_from([frozenset[str](), frozenset[str](), frozenset({"n0"})])
    return Demand(
        need=draw(st.sampled_from(MODELS)),
        waiting=0,
        failed=draw(some),
        closed=dict.fromkeys(draw(some), "taken"),
        may_migrate=draw(st.sampled_from([True, True, False])),
    )


# --- everything that could be done ------------------------------------------------------------


def _subsets(things: Sequence[Instance]) -> Iterator[tuple[Instance, ...]]:
    sizes = range(len(things) + 1)
    return chain.from_iterable(combinations(things, size) for size in sizes)


def _ids(instances: Sequence[Instance]) -> frozenset[str]:
    return frozenset(one.instance_id for one in instances)


def _fits(node: NodeView, model: Need, gone: Sequence[Instance] = ()) -> bool:
    kv_bytes = min(model.kv_bytes, node.facts.kv_capacity)
    large = kv_bytes >= model.least_kv_bytes
    large = large and model.checkpoint.size_bytes <= node.weights_capacity
    return large and room.shortage(node, model, kv_bytes, _ids(gone)).none


def _others(cluster: Snapshot, node: NodeView, model: Need, *, idle: bool) -> list[Instance]:
    return [
        one
        for one in node.present
        if one.state is InstanceState.READY
        and one.deployment != model.deployment
        and one.instance_id not in cluster.protected
        and (cluster.uses[one.instance_id].in_flight == 0) is idle
    ]


def _without_moves(cluster: Snapshot, node: NodeView, model: Need) -> float:
    """Seconds of the best start on a node that moves nothing."""
    idle = _others(cluster, node, model, idle=True)
    enough = (gone for gone in _subsets(idle) if _fits(node, model, gone))
    ways = [cluster.stop_seconds if gone else 0.0 for gone in enough]
    return min(ways, default=math.inf) + start_seconds(node, model, cluster.typical)


def _with_moves(cluster: Snapshot, demand: Demand, node: NodeView) -> float:
    """Seconds of the best start on a node from which running instances move."""
    if not demand.may_migrate or cluster.migration is None:
        return math.inf
    model = demand.need
    ways = [
        max(
            cluster.stop_seconds if idle else 0.0,
            *(_move(cluster, one, to) for one, to in zip(group, places, strict=True)),
        )
        for group in _subsets(_others(cluster, node, model, idle=False))
        for idle in _subsets(_others(cluster, node, model, idle=True))
        if group and _fits(node, model, (*group, *idle))
        for places in permutations(_elsewhere(cluster, node), len(group))
    ]
    return min(ways, default=math.inf) + start_seconds(node, model, cluster.typical)


def _elsewhere(cluster: Snapshot, node: NodeView) -> list[NodeView]:
    return [one for one in cluster.nodes.values() if one is not node]


def _move(cluster: Snapshot, one: Instance, to: NodeView) -> float:
    model, requests = cluster.needs[one.deployment], cluster.running[one.instance_id]
    assert cluster.migration
    cost = cluster.migration
    moving = cost.base + cost.per_token * sum(each.tokens for each in requests)
    there = [each for each in to.present if each.deployment == one.deployment]
    for each in there:
        slots = model.max_concurrency - cluster.uses[each.instance_id].in_flight
        if each.state is InstanceState.READY and slots >= len(requests):
            return moving
    if min(model.kv_bytes, to.facts.kv_capacity) < one.kv_bytes:
        return math.inf
    return moving + _without_moves(cluster, to, model)


def _best(cluster: Snapshot, demand: Demand) -> float:
    ways = [
        min(_without_moves(cluster, node, demand.need), _with_moves(cluster, demand, node))
        for node in cluster.nodes.values()
        if node.node_id not in demand.failed and node.node_id not in demand.closed
    ]
    return min(ways, default=math.inf)


def _assert_is_best(cluster: Snapshot, demand: Demand, estimate: float | None) -> None:
    """The first instance starts where it is soonest; others may be spread."""
    best = _best(cluster, demand)
    assert estimate is not None
    if cluster.instances.get(demand.need.deployment):
        assert estimate >= best - 1e-6
        assert not demand.waiting or estimate <= best + SPREAD_SECONDS + 1e-6
    else:
        assert estimate == pytest.approx(best)


@given(clusters(), demands())
def test_no_node_with_fewer_instances_could_take_it(cluster: Snapshot, demand: Demand) -> None:
    action = place(cluster, demand).action
    if not isinstance(action, Start | MigrateThenStart):
        return
    crowd = Counter(one.node_id for one in cluster.instances.get(demand.need.deployment, ()))
    barred = demand.failed | demand.closed.keys()
    for node_id in cluster.nodes.keys() - barred:
        if crowd[node_id] < crowd[action.node_id]:
            assert not _fits(cluster.nodes[node_id], demand.need)


@examples(300)
@given(clusters(), demands())
def test_nothing_that_could_be_done_is_sooner(cluster: Snapshot, demand: Demand) -> None:
    demand = replace(demand, closed={})  # of which moves see more than a search needs to know
    action = place(cluster, demand).action
    best = _best(cluster, demand)
    if isinstance(action, Start | MigrateThenStart):
        _assert_is_best(cluster, demand, action.estimate)
    else:
        assert isinstance(action, Wait)
        assert best == math.inf


@given(clusters(), demands(), st.sampled_from([0.0, 0.5, 1.5, 10.0]))
def test_a_slot_is_waited_for_only_where_no_start_is_sooner(
    cluster: Snapshot, demand: Demand, slot_wait: float
) -> None:
    demand = replace(demand, closed={}, waiting=1, slot_wait=slot_wait)
    action = place(cluster, demand).action
    best = _best(cluster, demand)
    if isinstance(action, Start | MigrateThenStart):
        _assert_is_best(cluster, demand, action.estimate)
        assert action.estimate is not None
        assert action.estimate < slot_wait
    elif isinstance(action, Wait):
        assert slot_wait <= best


@examples(300)
@given(clusters(), demands())
def test_whatever_is_decided_has_room_and_takes_it_from_nobody(
    cluster: Snapshot, demand: Demand
) -> None:
    action = place(cluster, demand).action
    if not isinstance(action, Start | MigrateThenStart):
        return
    moves = action.moves if isinstance(action, MigrateThenStart) else ()
    node = cluster.nodes[action.node_id]
    gone = frozenset(action.victims) | {move.instance_id for move in moves}
    assert room.shortage(node, demand.need, action.kv_bytes, gone).none
    assert len({action.node_id, *(move.to_node for move in moves)}) == len(moves) + 1
    for move in moves:
        other = cluster.needs[move.deployment]
        if move.into is None:
            there, gone_there = cluster.nodes[move.to_node], frozenset(move.victims)
            assert room.shortage(there, other, move.kv_bytes, gone_there).none
    for victim in chain(action.victims, *(move.victims for move in moves)):
        assert cluster.uses[victim].in_flight == 0
        assert victim not in cluster.protected
    assert not {move.instance_id for move in moves} & cluster.protected


@given(clusters(), demands())
def test_one_snapshot_gives_one_decision(cluster: Snapshot, demand: Demand) -> None:
    turned = dict(reversed(list(cluster.nodes.items())))
    fresh = {key: replace(node, memo={}) for key, node in turned.items()}
    first, again = place(cluster, demand), place(replace(cluster, nodes=fresh, memo={}), demand)
    assert first.action == again.action
    assert first.candidates == again.candidates
