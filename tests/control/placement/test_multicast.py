"""Whom a node is told of that is to get a checkpoint."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from sllm.checkpoint.format.form import WeightForm
from sllm.control.cluster.held import Held
from sllm.control.cluster.nodes import NodeView
from sllm.control.cluster.snapshot import UNKNOWN
from sllm.control.cluster.tiers import Copy, Link, Tier
from sllm.control.cluster.zones import zones_of
from sllm.control.placement.multicast import GROUP, MOST_HOLDERS, forms_for, givers_for
from sllm.control.placement.start_estimate import FETCH, IMPORT, start_seconds
from sllm.control.types.givers import Giver, Givers
from tests.control.shapes import copy, facts, need, view

MODEL = need(size=1000)
DIGEST = MODEL.checkpoint.digest
ZONES = zones_of([("a", "b", 0.01), ("b", "c", 0.02)])


def node(
    name: str, copies: Sequence[Copy] = (), fetched: float = 400.0, zone: str = ""
) -> NodeView:
    about = replace(facts(name), zone=zone)
    links = {**about.links, FETCH: Link(fetched)} if fetched else about.links
    return view(replace(about, links=links), copies=copies)


def told(newcomer: NodeView, others: Sequence[NodeView], arriving: Sequence[str]) -> Givers | None:
    nodes = {one.node_id: one for one in (newcomer, *others)}
    return givers_for(newcomer, nodes, DIGEST, [one.node_id for one in others], arriving, ZONES)


def names(givers: Givers | None, *, fellows: bool) -> list[str]:
    return [one.node_id for one in givers.givers if one.fellow is fellows] if givers else []


def test_those_that_hold_all_of_it_are_named_memory_before_disk() -> None:
    disk = node("disk", [copy(DIGEST, Tier.SSD, size=1000)])
    memory = node("memory", [copy(DIGEST, Tier.DRAM, size=1000)])
    half = node("half", [copy(DIGEST, Tier.SSD, size=1000, resident=500)])
    leaving = node("leaving", [copy(DIGEST, Tier.DRAM, size=1000)])
    leaving = view(replace(leaving.facts, leaving=True), copies=tuple(leaving.copies.values()))
    givers = told(node("n"), [disk, half, memory, leaving], [])
    assert givers == Givers(
        DIGEST,
        (Giver("memory", memory.facts.address), Giver("disk", disk.facts.address)),
    )


def test_where_nobody_has_it_nobody_is_named() -> None:
    assert told(node("n"), [node("other")], []) is None


def test_not_more_holders_are_named_than_help() -> None:
    many = [node(f"h{number}", [copy(DIGEST, size=1000)]) for number in range(30)]
    assert len(names(told(node("n"), many, []), fellows=False)) == MOST_HOLDERS


def test_those_that_are_getting_it_are_fellows_until_their_group_is_full() -> None:
    others = [node(f"n{number}") for number in range(3 * GROUP)]
    arriving = [one.node_id for one in others]
    newcomer = node("new")
    for place in range(GROUP):
        givers = told(newcomer, others, arriving[:place])
        assert names(givers, fellows=True) == arriving[:place]
        assert names(givers, fellows=False) == []
    for group, parent in ((1, 0), (2, 0)):
        givers = told(newcomer, others, arriving[: group * GROUP + 1])
        assert names(givers, fellows=True) == arriving[group * GROUP : group * GROUP + 1]
        assert names(givers, fellows=False) == arriving[parent * GROUP : (parent + 1) * GROUP]


def test_groups_stand_in_a_tree() -> None:
    """So that nobody gives to more than its own group and two others, however many start."""
    others = [node(f"n{number}") for number in range(20 * GROUP)]
    arriving = [one.node_id for one in others]
    children: dict[str, int] = {}
    for place in range(0, len(arriving), GROUP):
        for name in names(told(node("new"), others, arriving[:place]), fellows=False):
            children[name] = children.get(name, 0) + 1
    assert set(children.values()) <= {1, 2}


@pytest.mark.parametrize(("fetched", "named"), [(0.0, False), (20.0, False), (60.0, True)])
def test_nobody_is_named_to_a_node_to_which_others_are_slow(fetched: float, *, named: bool) -> None:
    """By its own links: its source gives 100 bytes a second; 0: it is not to have any of others."""
    holder = node("h", [copy(DIGEST, size=1000)])
    newcomer = node("n", fetched=fetched)
    assert newcomer.facts.links[IMPORT].bytes_per_second == 100
    assert (told(newcomer, [holder], []) is not None) is named


@pytest.mark.parametrize(("fetched", "seconds"), [(400.0, 2.5), (0.0, 10.0), (20.0, 10.0)])
def test_a_start_is_sooner_by_what_other_nodes_give(fetched: float, seconds: float) -> None:
    newcomer = node("n", fetched=fetched)
    assert start_seconds(newcomer, MODEL, UNKNOWN) == pytest.approx(10.0 + 1.0)
    held = replace(UNKNOWN, held=Held.of([(DIGEST, "b"), (DIGEST, "c")], ZONES))
    assert start_seconds(newcomer, MODEL, held) == pytest.approx(seconds + 1.0)
    # The way from another zone comes before the first byte, for those that have it from there.
    far = view(replace(newcomer.facts, zone="a"))
    way = 0.01 if fetched == 400.0 else 0.0
    assert start_seconds(far, MODEL, held) == pytest.approx(seconds + 1.0 + way)


@pytest.mark.parametrize(
    ("zones", "named"),
    [("abc", ["a"]), ("bc", ["b"]), ("c", ["c"]), (["", "c"], [""])],
    ids=["the same", "next", "far", "nobody knows where"],
)
def test_the_nearest_that_hold_it_are_named(zones: Sequence[str], named: list[str]) -> None:
    tiers = (Tier.SSD, Tier.DRAM, Tier.DRAM)
    holders = [
        node(zone, [copy(DIGEST, tier, size=1000)], zone=zone)
        for zone, tier in zip(zones, tiers, strict=False)
    ]
    givers = told(node("n", zone="a"), holders, [])
    assert names(givers, fellows=False) == named


def test_fellows_are_of_one_zone_and_the_next_zone_has_it_from_the_first() -> None:
    others = [node(f"{zone}{number}", zone=zone) for zone in "ab" for number in range(3)]
    arriving = [one.node_id for one in others]
    first = told(node("new", zone="a"), others, arriving)
    assert (names(first, fellows=True), names(first, fellows=False)) == (arriving[:3], [])
    second = told(node("new", zone="b"), others, arriving)
    assert (names(second, fellows=True), names(second, fellows=False)) == (
        arriving[3:],
        arriving[:3],
    )


def test_nobody_waits_for_whoever_waits_for_it() -> None:
    """Whoever is named was told to get it before: there is no circle, whatever the zones."""
    others = [node(f"n{number}", zone="abc"[number % 3]) for number in range(6 * GROUP)]
    arriving = [one.node_id for one in others]
    for place, one in enumerate(others):
        givers = told(one, others, arriving[:place])
        named = {giver.node_id for giver in givers.givers} if givers else set()
        assert named <= set(arriving[:place])


LABEL = "vllm:tp=2"


def ready(form: str, digest: str, tier: Tier = Tier.SSD, *, resident: int = 900) -> Copy:
    """What was made ready of the model."""
    about = WeightForm(form, "vllm", 2, made_of=DIGEST)
    made = copy(digest, tier, size=900, resident=resident)
    return replace(made, made_of=DIGEST, made_for=LABEL, form=about)


def forms(newcomer: NodeView, *others: NodeView, label: str = LABEL) -> dict[str, list[str]]:
    """Of whom a node is told, by form and digest."""
    nodes = {one.node_id: one for one in (newcomer, *others)}
    told = forms_for(newcomer, nodes, DIGEST, label, [*nodes, "gone"], ZONES)
    return {
        f"{one.form} {one.givers.digest}": [giver.node_id for giver in one.givers.givers]
        for one in told
    }


def test_nodes_that_have_made_weights_ready_are_named_by_form() -> None:
    others = [
        node("disk", [ready("avx512", "x")]),
        node("memory", [ready("avx512", "x"), ready("avx512", "x", Tier.DRAM)]),
        node("amx", [ready("amx", "y")]),
        node("half", [ready("amx", "y", resident=100)]),
        node("published", [copy(DIGEST, size=1000)]),
    ]
    assert forms(node("n"), *others) == {"amx y": ["amx"], "avx512 x": ["memory", "disk"]}
    assert forms(node("n"), *others, label="vllm") == {}, "as many ranks read it"
    assert forms(node("n", fetched=0.0), *others) == {}, "it has nothing of others"
    assert forms(others[2], *others[3:]) == {}, "it has its own"


def test_the_nearest_that_have_made_weights_ready_are_named() -> None:
    near, far = node("near", [ready("a", "x")], zone="b"), node("far", [ready("a", "x")], zone="c")
    assert forms(node("n", zone="a"), far, near) == {"a x": ["near"]}
