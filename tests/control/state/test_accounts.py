"""What a tenant has of a tier, whichever way it comes there."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from sllm import errors
from sllm.control.cluster.instances import Planned
from sllm.control.cluster.needs import Checkpoint
from sllm.control.cluster.specs import Deployment, Experts
from sllm.control.cluster.tiers import Copy, Hold, Tier
from sllm.control.state import tenancy, tier_bytes
from sllm.control.state.accounts import Account
from sllm.control.state.state import State
from sllm.control.tenants.limits import Limits
from sllm.control.types.pins import PREFIX, Keep, Place, prefetch_id
from sllm.control.types.reports import Full, Report
from tests.control import shapes

SIZE = 100


def state_of(*copies: Copy, limits: Limits) -> State:
    state = State()
    state.tenants.limits["acme"] = limits
    for name in "ab":
        state.set_deployment(shapes.deployment(f"acme:{name}", digest=name))
    state.fleet.apply(Report("n1", 1, Full(shapes.facts("n1"), copies, ())), 0.0)
    return state


def kept(name: str) -> Keep:
    return Keep("acme", Checkpoint("file:///m", SIZE, name), Tier.DRAM, "n1")


def start(state: State, name: str, *, of: str = "", size: int = SIZE) -> None:
    instance = shapes.instance(f"i-{name}", f"acme:{of or name}")
    state.fleet.plan(Planned(instance, of or name, size))


def pin(state: State, name: str) -> None:
    state.pinned.add(Place(f"acme:{name}", Tier.DRAM, "n1"))


def prefetch(state: State, name: str) -> None:
    state.prefetching[name] = kept(name)


@pytest.mark.parametrize("bounded", [Limits(ssd_bytes=SIZE), Limits(dram_bytes=SIZE)])
@pytest.mark.parametrize("come", [start, pin, prefetch])
def test_whatever_is_coming_counts_against_whatever_would_come(
    come: Callable[[State, str], None], bounded: Limits
) -> None:
    state = state_of(limits=bounded)
    tier_bytes.check(state, kept("b"))
    assert not tier_bytes.closed(state, "acme:b")
    come(state, "a")
    tier_bytes.check(state, kept("a"))  # the same there is no more
    assert not tier_bytes.closed(state, "acme:a")
    with pytest.raises(errors.TenantLimit):
        tier_bytes.check(state, kept("b"))
    assert tier_bytes.closed(state, "acme:b").keys() == {"n1"}


@pytest.mark.parametrize("come", [pin, prefetch])
def test_what_comes_counts_once_when_its_node_tells_of_it(
    come: Callable[[State, str], None],
) -> None:
    copies = [shapes.copy("a", tier, leased=True) for tier in (Tier.SSD, Tier.DRAM)]
    state = state_of(*copies, limits=Limits(dram_bytes=1))
    come(state, "a")
    assert Account.of(state, "acme").kept(Tier.DRAM) == SIZE


@pytest.mark.parametrize("owner", ["acme:gone", "acme:"])
def test_what_is_held_for_a_tenant_is_its_own_whatever_it_has_deleted(owner: str) -> None:
    held = replace(
        shapes.copy("gone", leased=True), holds=(Hold(prefetch_id(owner, "of any length")),)
    )
    state = state_of(held, limits=Limits(ssd_bytes=2 * SIZE - 1))
    assert tenancy.held(state)["acme"].bytes_by_tier == {"SSD": SIZE}
    assert tier_bytes.closed(state, "acme:b") == {"n1": Tier.SSD}


@pytest.mark.parametrize("hold_id", ["prefetch/once", prefetch_id("", "k"), "others/own"])
def test_what_is_held_for_nobody_counts_for_nobody(hold_id: str) -> None:
    held = replace(shapes.copy("c", leased=True), holds=(Hold(hold_id),))
    assert not tenancy.held(state_of(held, limits=Limits()))


def test_what_two_tenants_hold_counts_half() -> None:
    ids = prefetch_id("zebra:c", "k"), f"{PREFIX}acme:c/SSD"
    held = replace(shapes.copy("c", leased=True), holds=tuple(map(Hold, ids)))
    sizes = tenancy.held(state_of(held, limits=Limits()))
    assert {one: its.bytes_by_tier["SSD"] for one, its in sizes.items()} == {
        "acme": SIZE / 2,
        "zebra": SIZE / 2,
    }


def of_experts(name: str, min_replicas: int = 0) -> Deployment:
    """10 bytes beside its experts, of which 20 may be in memory; each instance has its own."""
    made = shapes.deployment(f"acme:{name}", digest=name, experts=Experts(90, 96, 8))
    engine = replace(made.spec.engine, expert_memory=20)
    scaling = replace(made.spec.scaling, min_replicas=min_replicas, max_replicas=9)
    return replace(made, spec=replace(made.spec, engine=engine, scaling=scaling))


OWN = 10 + 20


def test_weights_in_the_memory_of_instances_count_for_each_of_them() -> None:
    state = state_of(limits=Limits(dram_bytes=2 * OWN))
    state.set_deployment(of_experts("moe"))
    for count in (1, 2):
        assert not tier_bytes.closed(state, "acme:moe")
        start(state, f"moe-{count}", of="moe", size=0)
        assert tenancy.held(state)["acme"].bytes_by_tier["DRAM"] == count * OWN
    assert tier_bytes.closed(state, "acme:moe") == {"n1": Tier.DRAM}
    state.tenants.limits["acme"] = Limits(dram_bytes=OWN - 1)
    assert tier_bytes.never_fits(state, "acme:moe", Tier.DRAM)


@pytest.mark.parametrize(("min_replicas", "most"), [(0, OWN), (1, OWN), (3, 3 * OWN)])
def test_weights_that_min_replicas_keeps_in_instances_have_to_be_within(
    min_replicas: int, most: int
) -> None:
    deployment = of_experts("moe", min_replicas)
    tier_bytes.check_deployment(state_of(limits=Limits(dram_bytes=most)), deployment)
    with pytest.raises(errors.TenantLimit):
        tier_bytes.check_deployment(state_of(limits=Limits(dram_bytes=most - 1)), deployment)


def test_what_is_idle_leaves_for_what_instances_have_of_their_own() -> None:
    copies = [shapes.copy("a", tier) for tier in (Tier.SSD, Tier.DRAM)]
    state = state_of(*copies, limits=Limits(dram_bytes=SIZE))
    state.set_deployment(of_experts("moe"))
    assert not list(tier_bytes.idle_beyond(state, "acme"))
    start(state, "moe-1", of="moe", size=0)
    assert [one.tier for _, one in tier_bytes.idle_beyond(state, "acme")] == [Tier.DRAM]
