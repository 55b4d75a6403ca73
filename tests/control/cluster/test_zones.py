"""Ways between zones: the shortest there are, and links that are none."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sllm import errors
from sllm.control.cluster.zones import (
    MAX_SECONDS,
    NOWHERE,
    UNLINKED_SECONDS,
    Origins,
    Zones,
    zones_of,
)

NAMES = "abcd"
PAIRS = st.sampled_from([frozenset(pair) for pair in combinations(NAMES, 2)])
ZONES = st.builds(Zones, st.dictionaries(PAIRS, st.floats(0.0, 10.0)))
WITH_EMPTY = st.sampled_from(["", *NAMES])


@given(ZONES, WITH_EMPTY, WITH_EMPTY)
def test_ways_cost_the_same_both_ways_and_nothing_within_a_zone(
    zones: Zones, one: str, other: str
) -> None:
    assert zones.seconds(one, other) == pytest.approx(zones.seconds(other, one))
    assert zones.seconds(one, one) == 0.0
    assert zones.seconds(one, "") == 0.0


@given(ZONES, st.sampled_from(NAMES), st.sampled_from(NAMES), st.sampled_from(NAMES))
def test_no_way_over_others_is_shorter(zones: Zones, a: str, b: str, over: str) -> None:
    there, on = zones._ways_from(a), zones._ways_from(over)
    if over in there and b in on:
        assert zones.seconds(a, b) <= there[over] + on[b] + 1e-9


def test_a_way_over_another_zone_is_found_and_what_is_not_linked_is_far() -> None:
    zones = zones_of([("edge", "hub", 0.02), ("hub", "cloud", 0.03), ("edge", "cloud", 0.2)])
    assert zones.seconds("edge", "cloud") == pytest.approx(0.05)
    assert zones.seconds("edge", "moon") == UNLINKED_SECONDS
    assert NOWHERE.seconds("edge", "cloud") == UNLINKED_SECONDS


LINKS: dict[str, tuple[tuple[str, str, float], ...]] = {
    "a zone to itself": (("edge", "edge", 0.1),),
    "a zone without a name": (("", "edge", 0.1),),
    "a name that is none": (("edge", "../cloud", 0.1),),
    "a name that is too long": (("edge", "c" * 64, 0.1),),
    "a negative cost": (("edge", "cloud", -0.1),),
    "a cost that is none": (("edge", "cloud", float("nan")),),
    "a cost beyond all measure": (("edge", "cloud", MAX_SECONDS + 1),),
    "the same link twice": (("edge", "cloud", 0.1), ("cloud", "edge", 0.2)),
}


@pytest.mark.parametrize("what", LINKS)
def test_links_that_make_no_sense_are_refused(what: str) -> None:
    with pytest.raises(errors.InvalidArgument):
        zones_of(LINKS[what])


def test_requests_of_several_zones_have_the_mean_of_their_ways() -> None:
    zones = zones_of([("edge", "cloud", 0.4)])
    origins = Origins.of(zones, ["edge", "edge", "edge", "cloud", ""])
    assert origins.seconds("cloud") == pytest.approx(0.3)
    assert origins.seconds("edge") == pytest.approx(0.1)
    assert origins.seconds("") == 0.0
    assert Origins.of(zones, ["", ""]).anywhere
