"""How many requests an instance may have, whoever waits for them."""

import pytest

from sllm.control.cluster.usage import Limit, Use
from sllm.control.placement.placement import free_instance
from tests.control import shapes


def used(in_flight: int, background: int = 0, limit: int | None = None) -> Use:
    found = Limit(limit) if limit else None
    return Use("n1", in_flight, 0.0, background=background, limit=found)


@pytest.mark.parametrize(("most", "limit"), [(8, None), (32, 8), (8, 32), (32, 31)])
def test_what_nobody_waits_for_leaves_a_slot_free_of_those_that_there_are(
    most: int, limit: int | None
) -> None:
    """Also where an instance has fewer than its deployment says, by how fast its tokens come."""
    instance, slots = shapes.instance("i", "m"), min(most, limit or most)

    def is_given(in_flight: int, *, background: bool) -> bool:
        uses = {"i": used(in_flight, background=in_flight, limit=limit)}
        return free_instance([instance], uses, most, background=background) is not None

    assert is_given(slots - 2, background=True)
    assert not is_given(slots - 1, background=True)
    assert is_given(slots - 1, background=False)
    assert not is_given(slots, background=False)


@pytest.mark.parametrize(("in_flight", "chosen"), [(0, "keeps"), (4, "keeps"), (5, "idle")])
def test_what_a_node_keeps_of_a_prompt_counts_while_others_are_about_as_busy(
    in_flight: int, chosen: str
) -> None:
    """Or all that begin alike would wait for one instance."""
    uses = {"keeps": used(in_flight), "idle": used(0)}
    instances = [shapes.instance(one, "m", node_id=f"on-{one}") for one in uses]
    found = free_instance(instances, uses, 16, saved={"on-keeps": 3.0})
    assert found
    assert found.instance_id == chosen


def test_of_few_slots_none_is_left_free() -> None:
    instance = shapes.instance("i", "m")
    uses = {"i": used(6, background=6, limit=7)}
    assert free_instance([instance], uses, 32, background=True) is instance


@pytest.mark.parametrize(
    ("in_flight", "background", "taken"),
    [(15, 15, 16), (16, 15, 16), (14, 14, 15), (15, 0, 15), (17, 3, 17)],
)
def test_the_slot_that_is_left_free_counts_as_taken(
    in_flight: int, background: int, taken: int
) -> None:
    """Or a batch alone would never have an instance try one request more."""
    assert used(in_flight, background, limit=16).taken(32) == taken
