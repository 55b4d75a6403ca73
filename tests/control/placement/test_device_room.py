"""Room on nodes with devices: what placement reckons from what they report."""

from dataclasses import replace

import pytest

from sllm.control.cluster.instances import Instance, Planned
from sllm.control.cluster.nodes import Device, NodeView
from sllm.control.cluster.tiers import Tier, TierUsage
from sllm.control.placement import room
from sllm.control.placement.decisions import Demand, Start
from sllm.control.placement.placement import place
from sllm.control.placement.ranking import Ranking
from sllm.control.placement.room import too_small
from sllm.control.state.fleet import Fleet
from sllm.control.types.reports import Full, Report
from tests.control.shapes import copy, facts, instance, need, snapshot, view

MIB = 1 << 20
ROOM = 100 * MIB
"""Of each device, for weights and KV caches."""


def device(index: int = 0, *, weights: int = 0, kv: int = 0, idle: int = 0) -> Device:
    """One with so many MiB in use; KV caches may have half of it."""
    sizes = (weights * MIB, ROOM // 2, kv * MIB)
    return Device(index, "GPU", "u", ROOM, ROOM, ROOM, *sizes, idle_bytes=idle * MIB)


def node(*devices: Device, instances: tuple[Instance, ...] = (), **planned: Planned) -> NodeView:
    """A node with these devices; its tier is as large as all of them together."""
    usage = TierUsage(ROOM * len(devices), sum(one.weights_used_bytes for one in devices))
    tiers = {**facts().tiers, Tier.DEVICE: usage}
    kv = sum(one.kv_capacity_bytes for one in devices)
    copies = [copy("d", Tier.DEVICE, size=60 * MIB, leased=True)]
    of = replace(facts(kv=kv), tiers=tiers, devices=devices)
    return replace(view(of, copies=copies, instances=instances), planned=planned)


def lacking(on: NodeView, size: int, kv: int, *stopped: str, digest: str = "new") -> int:
    """MiB that a start lacks."""
    wanted = need(digest=digest, size=size * MIB)
    found = room.shortage(on, wanted, kv * MIB, frozenset(stopped))
    assert found.none == (found.device_bytes <= 0)
    return max(0, found.device_bytes) // MIB


def test_what_all_devices_have_together_is_of_no_use() -> None:
    half_full = node(device(0, weights=50, kv=10), device(1, weights=50, kv=5))
    assert lacking(half_full, 40, 5) == 0
    assert lacking(half_full, 44, 5) == 4
    assert "4194304 bytes short for weights and KV cache on any one device" in (
        room.shortage(half_full, need(size=44 * MIB), 5 * MIB).text
    )


def test_weights_and_kv_caches_share_a_device() -> None:
    assert lacking(node(device()), 60, 40) == 0
    assert lacking(node(device()), 60, 41) == 1
    assert lacking(node(device()), 2, 51) == 1, "KV caches may have half of it"


def test_what_is_idle_is_no_obstacle() -> None:
    assert lacking(node(device(weights=60, idle=60)), 90, 10) == 0


def test_weights_that_are_in_use_take_no_more_room() -> None:
    user = replace(instance("i1", digest="d", kv=10 * MIB), device=1)
    on = node(device(0, weights=90), device(1, weights=60, kv=10), instances=(user,))
    assert lacking(on, 60, 30, digest="d") == 0
    assert lacking(on, 60, 30) > 0


def test_instances_that_end_give_back_what_is_theirs_on_their_device() -> None:
    users = tuple(
        replace(instance(f"i{index}", digest="d", kv=10 * MIB), device=index) for index in (0, 1)
    )
    on = node(*(device(index, weights=60, kv=10) for index in (0, 1)), instances=users)
    assert lacking(on, 60, 10) == 40
    assert lacking(on, 90, 10, "i0") == 0
    assert lacking(replace(on, leaving=frozenset({"i1"}), memo={}), 90, 10) == 0
    shared = replace(on, instances={**on.instances, "i2": replace(users[0], instance_id="i2")})
    assert lacking(shared, 60, 10, "i0") == 30, "another still uses the weights"


def test_starts_that_have_no_device_yet_keep_their_room() -> None:
    plan = Planned(instance("p", kv=10 * MIB), "other", 80 * MIB)
    assert lacking(node(device(), p=plan), 20, 10) == 20
    assert lacking(node(device(0), device(1), p=plan), 80, 10) == 0
    seated = replace(instance("p", kv=10 * MIB), device=0)
    counted = node(device(weights=80, kv=10), instances=(seated,), p=plan)
    assert lacking(counted, 4, 5) == 0, "what is reported is not counted twice"


def test_a_start_lacks_the_room_of_those_that_are_still_leaving() -> None:
    """Which is what it waits for before its node is asked."""
    old = replace(instance("i", digest="d", kv=10 * MIB), device=0)
    plan = Planned(instance("p", kv=10 * MIB), "new", 80 * MIB)
    on = node(device(weights=60, kv=10), instances=(old,), p=plan)
    leaving = replace(on, leaving=frozenset({"i"}), memo={})
    assert lacking(leaving, 80, 0, digest="new") == 0
    assert lacking(leaving.with_leaving, 80, 0, digest="new") == 60


def test_two_starts_on_a_node_have_a_device_each() -> None:
    on = node(device(0), device(1))
    plan = Planned(instance("p", kv=10 * MIB), "one", 80 * MIB)
    both = replace(on, planned={"p": plan, "q": replace(plan, checkpoint="two")}, memo={})
    assert lacking(both, 20, 10) == 20


@pytest.mark.parametrize(("size", "kv", "fits"), [(60, 40, True), (62, 40, False), (20, 60, False)])
def test_a_model_fits_if_it_fits_one_device(size: int, kv: int, fits: bool) -> None:
    wanted = need(size=size * MIB, kv=kv * MIB, least_kv=kv * MIB)
    on = node(device(0), device(1))
    assert (too_small(on, wanted) is None) == fits
    assert bool(Ranking(snapshot(on), wanted).node_ids) == fits


def test_an_instance_gets_the_kv_cache_that_one_device_has() -> None:
    on = node(device(0), device(1))
    assert room.kv_grant(on, need(size=20 * MIB, kv=500 * MIB)) == 50 * MIB
    assert room.kv_grant(on, need(size=70 * MIB, kv=500 * MIB)) == 30 * MIB


def test_a_start_goes_where_one_device_has_the_room() -> None:
    """The other node has more room, and on none of its devices enough."""
    split = node(*(device(index, weights=50) for index in range(4)))
    whole = node(device(0, weights=20))
    fleet = Fleet()
    for name, one in (("n1", split), ("n2", whole)):
        fleet.apply(Report(name, 1, Full(replace(one.facts, node_id=name))), 0.0)
    found = fleet.snapshot({}, frozenset())
    wanted = need(size=60 * MIB, kv=10 * MIB, least_kv=MIB)
    action = place(found, Demand(wanted, waiting=1)).action
    assert isinstance(action, Start)
    assert action.node_id == "n2"
    ranks = {rank.node_id: rank.lacks_room for rank in Ranking(found, wanted).best_first()}
    assert ranks == {"n1": True, "n2": False}
