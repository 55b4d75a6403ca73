"""What has to leave for tenants to have no more on a tier than they may."""

from collections import Counter
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from sllm.control.cluster.tiers import Copy, Hold, Tier
from sllm.control.state import tier_bytes
from sllm.control.state.state import State
from sllm.control.tenants.limits import Limits
from sllm.control.types.reports import Full, Report
from tests.control import shapes

DIGESTS = ("a", "b", "c", "shared")
Held = dict[str, list[Copy]]
"""By node."""


def state_of(held: Held, limits: Limits) -> State:
    """Each checkpoint but one is acme's alone."""
    state = State()
    state.tenants.limits["acme"] = limits
    for digest in DIGESTS:
        state.set_deployment(shapes.deployment(f"acme:{digest}", digest=digest))
    state.set_deployment(shapes.deployment("zebra:shared", digest="shared"))
    for node_id, copies in held.items():
        report = Report(node_id, 1, Full(shapes.facts(node_id), tuple(copies), ()))
        assert state.fleet.apply(report, 0.0)
    return state


@st.composite
def copies(draw: st.DrawFn) -> list[Copy]:
    keys = draw(
        st.sets(st.tuples(st.sampled_from(DIGESTS), st.sampled_from((Tier.SSD, Tier.DRAM))))
    )
    sizes, leased = st.integers(1, 50), st.booleans()
    return [
        shapes.copy(digest, tier, size=draw(sizes), leased=draw(leased))
        for digest, tier in sorted(keys)
    ]


@given(
    held=st.dictionaries(st.sampled_from(("n1", "n2", "n3")), copies()),
    ssd=st.none() | st.integers(0, 200),
    dram=st.none() | st.integers(0, 200),
)
def test_no_more_leaves_than_has_to_and_nothing_that_may_not(
    held: Held, ssd: int | None, dram: int | None
) -> None:
    state = state_of(held, Limits(ssd_bytes=ssd, dram_bytes=dram))
    going = list(tier_bytes.idle_beyond(state, "acme"))
    assert not any(copy.leased or copy.serves == "shared" for _, copy in going)
    gone = {(node_id, copy.digest, copy.tier) for node_id, copy in going}
    assert len(gone) == len(going)
    for tier, most in ((Tier.SSD, ssd), (Tier.DRAM, dram)):
        its = [(node, one) for node, ones in held.items() for one in ones if one.tier is tier]
        size = sum(one.size_bytes / (1 + (one.serves == "shared")) for _, one in its)
        leaves = [one for node, one in its if (node, one.digest, tier) in gone]
        if most is None or size <= most:
            assert not leaves
        elif leaves:
            assert size - sum(map(resident, leaves)) + max(map(resident, leaves)) > most
    lasts = Counter(digest for digest in DIGESTS for node in held if is_held(held, node, digest))
    for digest, nodes in lasts.items():
        left = [
            (node, one.tier)
            for node, ones in held.items()
            for one in ones
            if one.digest == digest
            and not {(node, digest, one.tier), (node, digest, Tier.SSD)} & gone
        ]
        assert left or not nodes, f"nobody has {digest} any more"


def resident(copy: Copy) -> int:
    return copy.resident_bytes


def is_held(held: Held, node: str, digest: str) -> bool:
    return any(one.digest == digest for one in held[node])


def test_what_is_there_twice_leaves_the_one_that_is_not_used() -> None:
    held = {
        "n1": [shapes.copy("a", leased=True)],
        "n2": [shapes.copy("a")],
        "n3": [shapes.copy("b")],
    }
    state = state_of(held, Limits(ssd_bytes=200))
    assert [(node, one.digest) for node, one in tier_bytes.idle_beyond(state, "acme")] == [
        ("n2", "a")
    ]


def test_what_is_used_in_memory_stays_on_disk() -> None:
    held = {
        "n1": [shapes.copy("a"), shapes.copy("a", Tier.DRAM, leased=True)],
        "n2": [shapes.copy("a")],
    }
    state = state_of(held, Limits(ssd_bytes=100))
    assert [node for node, _ in tier_bytes.idle_beyond(state, "acme")] == ["n2"]


def test_what_was_asked_for_least_lately_goes_first() -> None:
    held = {"n1": [shapes.copy(digest, tier) for digest in "abc" for tier in (Tier.SSD, Tier.DRAM)]}
    state = state_of(held, Limits(dram_bytes=200))
    state.arrivals.ended("acme:a", 20.0)
    state.arrivals.ended("acme:b", 10.0)
    state.arrivals.ended("acme:c", 30.0)
    assert [one.digest for _, one in tier_bytes.idle_beyond(state, "acme")] == ["b"]


def test_all_forms_of_a_checkpoint_count() -> None:
    published = shapes.copy("a", leased=True)
    made = Copy("ready", Tier.SSD, 70, 70, (), True, made_of="a", made_for="vllm")
    state = state_of({"n1": [published, made], "n2": []}, Limits(ssd_bytes=269))
    assert tier_bytes.closed(state, "acme:b") == {"n1": Tier.SSD, "n2": Tier.SSD}
    state.tenants.limits["acme"] = Limits(ssd_bytes=270)
    assert not tier_bytes.closed(state, "acme:b")


def test_nodes_without_any_of_a_tenants_checkpoints_are_not_looked_at() -> None:
    held = {"n1": [shapes.copy("a", leased=True)], "n2": [shapes.copy("others", leased=True)]}
    state = state_of(held, Limits(ssd_bytes=250))
    assert not tier_bytes.closed(state, "acme:b")
    assert state.fleet.nodes["n1"].memo
    assert not state.fleet.nodes["n2"].memo


def test_what_is_pinned_leaves_no_room_whatever_ends() -> None:
    pinned = replace(shapes.copy("a", Tier.DRAM, leased=True), holds=(Hold("pin/a"),))
    state = state_of({"n1": [shapes.copy("a"), pinned]}, Limits(ssd_bytes=199, dram_bytes=200))
    assert tier_bytes.never_fits(state, "acme:b", Tier.SSD)
    assert not tier_bytes.never_fits(state, "acme:b", Tier.DRAM)
