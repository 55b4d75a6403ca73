"""What no node could run is refused with the numbers."""

from dataclasses import replace

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
