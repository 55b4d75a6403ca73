"""What no node could run is refused with the numbers."""

from dataclasses import replace
from typing import Any

import pytest

from sllm import errors
from sllm.control.cluster.nodes import Device, NodeMemory
from sllm.control.placement import fitting
from sllm.control.placement.decisions import Demand, Start, Wait
from sllm.control.placement.placement import place
from tests.control.shapes import facts, need, snapshot, view

NODES = [view(replace(facts(f"n{count}"), max_tensor_parallel=count)) for count in (1, 4)]


@pytest.mark.parametrize("count", [1, 2, 4])
def test_as_many_devices_as_some_node_has_are_enough(count: int) -> None:
    wanted = replace(need(), tensor_parallel=count)
    fitting.check_fits(snapshot(*NODES), wanted)


def test_more_devices_than_any_node_has_are_refused() -> None:
    wanted = replace(need(), tensor_parallel=5)
    with pytest.raises(errors.ModelTooLarge) as refusal:
        fitting.check_fits(snapshot(*NODES), wanted)
    for node_id, count in (("n1", 1), ("n4", 4)):
        words = f"{node_id}: tensor_parallel is 5, and {count} of its devices"
        assert words in refusal.value.message


def test_a_start_goes_where_there_are_enough_devices() -> None:
    decision = place(snapshot(*NODES), Demand(replace(need(), tensor_parallel=2), waiting=1))
    assert isinstance(decision.action, Start)
    assert decision.action.node_id == "n4"
    (few,) = [one for one in decision.candidates if one.node_id == "n1"]
    assert few.unfit
    assert few.rejected
    assert "tensor_parallel is 2, and 1 of its devices" in few.rejected
    nowhere = place(snapshot(NODES[0]), Demand(replace(need(), tensor_parallel=2), waiting=1))
    assert isinstance(nowhere.action, Wait)


def test_what_stays_on_ssd_needs_no_room_in_the_pool() -> None:
    small = view()
    mixture = replace(need(size=1 << 40), expert_memory=300, resident_bytes=200, private_bytes=500)
    with pytest.raises(errors.ModelTooLarge):
        fitting.check_fits(snapshot(small), replace(mixture, expert_memory=None))
    fitting.check_fits(snapshot(small), mixture)


def test_what_stays_on_ssd_needs_memory_of_its_own_and_a_processor() -> None:
    mixture = replace(need(), expert_memory=300, resident_bytes=200, private_bytes=500)
    memory = NodeMemory(1000, 400, 0, 10)
    few = view(replace(facts("few"), memory=memory))
    with pytest.raises(errors.ModelTooLarge, match="510 bytes of memory for an instance itself"):
        fitting.check_fits(snapshot(few), mixture)
    enough = replace(few.facts, memory=replace(memory, capacity_bytes=510))
    fitting.check_fits(snapshot(view(enough)), mixture)
    device = Device(0, "H200", "u", 1000, 1000, 1000, 0, 1000, 0)
    other = view(replace(facts("gpu"), devices=(device,)))
    with pytest.raises(errors.ModelTooLarge, match="gpu: has accelerators"):
        fitting.check_fits(snapshot(other), mixture)


def device(total: int) -> Device:
    return Device(0, "d", "u", total, total, total, 0, total, 0)


MEMORY = NodeMemory(1000, capacity_bytes=50, used_bytes=0, instance_bytes=20, max_instances=0)
ONE_EACH = [view(facts(f"n{number}", kv=100)) for number in range(3)]


@pytest.mark.parametrize(
    ("changes", "most"),
    [
        ({}, 10),  # 1000 bytes of caches, of which each takes 100
        ({"kv_capacity": 50}, 1),  # an instance takes all that there is
        ({"memory": MEMORY}, 2),
        ({"memory": replace(MEMORY, max_instances=1)}, 1),
        ({"memory": replace(MEMORY, capacity_bytes=19)}, None),
        ({"devices": (device(3 << 20), device(2 << 20))}, ((1 << 20) // 100)),
    ],
)
def test_a_node_has_room_for_so_many_instances_if_it_is_empty(
    changes: dict[str, Any], most: int | None
) -> None:
    found = fitting.most_instances(snapshot(view(replace(facts(), **changes))), need())
    assert found == ([] if most is None else [most])


@pytest.mark.parametrize(("instances", "nodes"), [(1, 1), (2, 2), (3, 3), (5, 5)])
def test_instances_are_on_as_many_nodes_at_least_as_they_take(instances: int, nodes: int) -> None:
    assert fitting.least_nodes(snapshot(*ONE_EACH), need(), instances) == nodes
    large = view(facts("large", kv=instances * 100))
    assert fitting.least_nodes(snapshot(*ONE_EACH, large), need(), instances) == 1
    assert fitting.least_nodes(snapshot(), need(), instances) == 1


def test_instances_for_which_the_nodes_never_have_room_are_told_of() -> None:
    told = fitting.check_replicas(snapshot(*ONE_EACH), need(), 4)
    assert "min_replicas is 4, and the 3 nodes there are would have room for 3" in told
    assert not fitting.check_replicas(snapshot(*ONE_EACH), need(), 3)
    assert not fitting.check_replicas(snapshot(), need(), 3), "there are no nodes yet"
