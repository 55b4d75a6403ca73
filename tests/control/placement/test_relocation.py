"""Room made by migration, by hand."""

from dataclasses import replace

import pytest

from sllm.control.cluster.snapshot import Snapshot
from sllm.control.cluster.tiers import Tier
from sllm.control.cluster.usage import MigrationCost, Running, Use
from sllm.control.placement.decisions import Demand, MigrateThenStart, Move, Start, Wait
from sllm.control.placement.placement import place
from tests.control.shapes import copy, facts, instance, need, snapshot, view

COST = MigrationCost(per_token=0.01, base=0.2)
NEED = need("m", size=500, kv=1000)
OTHER = need("o", size=500, kv=1000, digest="x")
DEMAND = Demand(NEED, may_migrate=True)


def _cluster() -> Snapshot:
    """Near weights on n1, which `o` keeps busy; n2 is empty, but has to fetch both models."""
    held = [copy("d", Tier.DRAM, size=500), copy("x", Tier.DRAM, size=500, leased=True)]
    busy = instance("i1", "o", kv=1000, digest="x")
    cluster = snapshot(
        view(facts("n1"), copies=held, instances=[busy]),
        view(facts("n2"), copies=[copy("x", Tier.DRAM, size=500)]),
        uses={"i1": Use("n1", 1, 0.0)},
    )
    running = {"i1": (Running("r1", tokens=30, expected=20),)}
    return replace(cluster, needs={"o": OTHER}, running=running, migration=COST)


def test_a_running_instance_is_migrated_away_where_that_is_sooner() -> None:
    action = place(_cluster(), DEMAND).action
    move = Move("i1", "o", "n2", None, 1000, ("r1",), 1.0, 0.01 * 50 + 0.2)
    assert isinstance(action, MigrateThenStart)
    assert (action.node_id, action.kv_bytes, action.moves) == ("n1", 1000, (move,))
    assert action.estimate == pytest.approx(1.0 + 0.7 + 1.0)


def test_nothing_is_migrated_without_leave_or_without_a_known_cost() -> None:
    start = place(_cluster(), replace(DEMAND, may_migrate=False)).action
    assert isinstance(start, Start)
    assert start.node_id == "n2"
    assert place(replace(_cluster(), migration=None), DEMAND).action == start


def test_a_start_elsewhere_is_taken_if_it_is_sooner() -> None:
    action = place(replace(_cluster(), migration=MigrationCost(1.0, 0.0)), DEMAND).action
    assert isinstance(action, Start)


def test_requests_that_are_not_all_known_stay_where_they_are() -> None:
    cluster = replace(_cluster(), running={})
    assert isinstance(place(cluster, DEMAND).action, Start)


def test_another_instance_with_free_slots_takes_them_at_once() -> None:
    busy = instance("i1", "o", kv=1000, digest="x")
    beside = instance("i2", "o", node_id="n2", kv=1000, digest="x")
    cluster = replace(
        _cluster(),
        nodes=snapshot(
            view(facts("n1"), copies=[copy("d", Tier.DRAM, size=500)], instances=[busy]),
            view(facts("n2"), instances=[beside]),
        ).nodes,
        instances={"o": (busy, beside)},
        uses={"i1": Use("n1", 1, 0.0), "i2": Use("n2", 1, 0.0)},
    )
    action = place(cluster, DEMAND).action
    assert isinstance(action, MigrateThenStart)
    assert (action.moves[0].into, action.moves[0].start_seconds) == ("i2", 0.0)


def test_who_moves_goes_where_it_is_ready_first_the_end_of_others_counted() -> None:
    """n2 has the shorter start, but first an idle instance would have to end there."""
    weights = [copy("x", Tier.DRAM, size=500)]
    idle = instance("idle", "p", node_id="n2", kv=1000, digest="p")
    busy = instance("i1", "o", kv=1000, digest="x")
    held = [copy("d", Tier.DRAM, size=500), copy("x", Tier.DRAM, size=500, leased=True)]
    cluster = replace(
        snapshot(
            view(facts("n1"), copies=held, instances=[busy]),
            view(facts("n2"), copies=weights, instances=[idle]),
            view(facts("n3", init=1.2), copies=weights),
            uses={"i1": Use("n1", 1, 0.0), "idle": Use("n2", 0, 0.0)},
        ),
        needs={"o": OTHER},
        running={"i1": (Running("r1", tokens=30),)},
        migration=COST,
        stop_seconds=0.5,
    )
    action = place(cluster, DEMAND).action
    assert isinstance(action, MigrateThenStart)
    (move,) = action.moves
    assert (move.to_node, move.start_seconds, move.victims) == ("n3", 1.2, ())


def test_several_go_where_one_is_not_enough_each_to_a_node_of_its_own() -> None:
    small = need("o", size=100, kv=500, digest="x")
    busy = [instance(f"i{index}", "o", kv=500, digest="x") for index in (1, 2)]
    cluster = replace(
        snapshot(
            view(facts("n1"), copies=[copy("d", Tier.DRAM, size=500)], instances=busy),
            view(facts("n2", dram=400)),
            view(facts("n3", dram=400)),
            uses={"i1": Use("n1", 1, 0.0), "i2": Use("n1", 1, 0.0)},
        ),
        needs={"o": small},
        running={"i1": (Running("r1", 10),), "i2": (Running("r2", 20),)},
        migration=COST,
    )
    action = place(cluster, DEMAND).action
    assert isinstance(action, MigrateThenStart)
    assert [(move.instance_id, move.to_node) for move in action.moves] == [
        ("i1", "n2"),
        ("i2", "n3"),
    ]
    assert action.estimate == pytest.approx((100 / 100 + 1.0) + (0.2 + 0.2) + 1.0)


def test_where_nothing_can_go_on_elsewhere_one_waits() -> None:
    cluster = _cluster()
    alone = replace(cluster, nodes={"n1": cluster.nodes["n1"]}, holders={})
    assert isinstance(place(alone, DEMAND).action, Wait)


def test_the_candidates_tell_of_the_moves() -> None:
    first, second = place(_cluster(), DEMAND).candidates
    assert first.moves[0].to_node == "n2"
    assert first.estimate == pytest.approx(2.7)
    assert second.estimate == pytest.approx(500 / 100 + 1.0)
