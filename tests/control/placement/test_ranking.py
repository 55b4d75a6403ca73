"""All nodes at once, against each of them looked at by itself; and a table that is kept up."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sllm.control.cluster.init_times import InitKey, InitTime, InitTimes
from sllm.control.cluster.nodes import NodeFacts
from sllm.control.cluster.snapshot import Snapshot
from sllm.control.cluster.tiers import Copy, Link, Tier
from sllm.control.cluster.zones import zones_of
from sllm.control.placement.ranking import Ranking, table_of
from sllm.control.placement.start_estimate import FETCH, start_seconds
from sllm.control.state.fleet import Fleet
from sllm.control.types.reports import Delta, Full, Report
from tests.control.shapes import copy, facts, need, snapshot, typical_of, view
from tests.properties import examples

MODELS = [
    replace(need(f"m{index}", size=50 + 100 * index, digest=f"d{index}"), tensor_parallel=index + 1)
    for index in range(3)
]
ZONES = zones_of([("a", "b", 0.3), ("b", "c", 5.0)])
MODELS.append(replace(MODELS[0], expert_memory=40, resident_bytes=20, private_bytes=70))
"""A mixture of experts, which stay on SSD: it takes nothing of the pool."""


def _by_itself(cluster: Snapshot, index: int) -> list[tuple[float, str]]:
    model = MODELS[index]
    nodes = [one for one in cluster.nodes.values() if one.weights_capacity >= model.pool_bytes]
    nodes = [one for one in nodes if one.facts.kv_capacity >= model.least_kv_bytes]
    nodes = [one for one in nodes if one.facts.max_tensor_parallel >= model.tensor_parallel]
    return sorted((start_seconds(one, model, cluster.typical), one.node_id) for one in nodes)


def _check(cluster: Snapshot) -> None:
    for index, model in enumerate(MODELS):
        ranks = list(Ranking(cluster, model).best_first())
        alone = _by_itself(cluster, index)
        assert sorted(one.node_id for one in ranks) == sorted(node_id for _, node_id in alone)
        for rank, (seconds, _) in zip(ranks, alone, strict=True):
            assert rank.seconds == seconds or rank.seconds == pytest.approx(seconds)


@st.composite
def told(draw: st.DrawFn, node_id: str) -> tuple[NodeFacts, tuple[Copy, ...]]:
    """What a node might report."""
    speeds = st.sampled_from([0.0, 10.0, 100.0])
    links = {
        (Tier.REMOTE, Tier.SSD): Link(draw(speeds), draw(st.integers(0, 500))),
        (Tier.SSD, Tier.DRAM): Link(draw(speeds), draw(st.integers(0, 500))),
        FETCH: Link(draw(speeds)),
    }
    seen = draw(st.lists(st.sampled_from(MODELS[:3]), unique=True))
    times = st.floats(0, 2)
    init_times = {
        InitKey(one.checkpoint.digest, "transformers", draw(st.booleans())): InitTime(
            one.checkpoint.size_bytes, draw(times), draw(times)
        )
        for one in seen
    }
    of = facts(
        node_id,
        dram=draw(st.integers(0, 400)),
        kv=draw(st.integers(0, 50)),
        links=links,
        init=draw(st.none() | times),
    )
    held = draw(st.lists(st.sampled_from(MODELS), unique=True))
    copies = tuple(
        copy(one.checkpoint.digest, draw(st.sampled_from([Tier.SSD, Tier.DRAM])), size=size)
        for one in held
        for size in [one.checkpoint.size_bytes]
    )
    copies += tuple(
        replace(
            copy(f"made of {one.checkpoint.digest}", draw(st.sampled_from([Tier.SSD, Tier.DRAM]))),
            made_of=one.checkpoint.digest,
            made_for="transformers",
        )
        for one in draw(st.lists(st.sampled_from(MODELS), unique=True))
    )
    devices = draw(st.integers(1, 4))
    zone = draw(st.sampled_from(["", "a", "b", "c"]))
    times_here = InitTimes(init_times)
    return replace(of, init_times=times_here, max_tensor_parallel=devices, zone=zone), copies


@given(st.tuples(*(told(f"n{index}") for index in range(4))))
def test_all_nodes_at_once_are_ranked_as_each_by_itself(
    nodes: tuple[tuple[NodeFacts, tuple[Copy, ...]], ...],
) -> None:
    _check(snapshot(*(view(of, copies=copies) for of, copies in nodes), zones=ZONES))


@examples(50)
@given(st.data())
def test_the_table_is_kept_up_while_nodes_come_change_and_go(data: st.DataObject) -> None:
    fleet, revisions = Fleet(ZONES), dict.fromkeys(("n1", "n2", "n3"), 0)
    for _ in range(data.draw(st.integers(1, 8))):
        node_id = data.draw(st.sampled_from(sorted(revisions)))
        of, copies = data.draw(told(node_id))
        revisions[node_id] += 1
        body: Full | Delta = Full(of, copies)
        if node_id in fleet.nodes and data.draw(st.booleans()):
            body = Delta(of, copies)
        assert fleet.apply(Report(node_id, revisions[node_id], body), 0.0)
        if data.draw(st.integers(0, 4)) == 0:
            fleet.remove(node_id)
        cluster = fleet.snapshot({}, frozenset())
        _check(cluster)
        assert cluster.typical.held == typical_of(cluster.nodes.values(), ZONES).held
        fleet.check_integrity()
        fresh = table_of(replace(cluster, memo={}))
        assert fresh.node_ids == table_of(cluster).node_ids
        assert (fresh.numbers == table_of(cluster).numbers).all()


def test_what_nobody_knows_is_last() -> None:
    cluster = snapshot(view(facts("n1", links={}, init=None)), view(facts("n2")))
    cluster = replace(cluster, typical=replace(cluster.typical, bandwidths={}, init_time=None))
    first, second = Ranking(cluster, MODELS[0]).best_first()
    assert (first.node_id, second.node_id, second.seconds) == ("n2", "n1", math.inf)


def test_of_equals_the_one_whose_weights_are_nearest_is_first() -> None:
    """Loads that take no time leave nothing else to tell nodes apart by."""
    instant = {pair: Link(math.inf) for pair in [(Tier.REMOTE, Tier.SSD), (Tier.SSD, Tier.DRAM)]}
    model = need("m", size=100, digest="d")
    cluster = snapshot(
        view(facts("n1", links=instant)),
        view(facts("n2", links=instant), copies=[copy("d", Tier.SSD)]),
        view(
            facts("n3", links=instant),
            copies=[copy("d", Tier.SSD), copy("d", Tier.DRAM)],
        ),
    )
    ranks = list(Ranking(cluster, model).best_first())
    assert len({rank.seconds for rank in ranks}) == 1
    assert [rank.node_id for rank in ranks] == ["n3", "n2", "n1"]
