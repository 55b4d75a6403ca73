"""What no node could run is refused with the numbers."""

from dataclasses import replace

import pytest

from sllm import errors
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
