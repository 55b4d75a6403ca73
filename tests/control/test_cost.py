"""Start estimates by hand."""

import math

import pytest

from sllm.control.cost import start_seconds
from sllm.control.needs import Checkpoint
from sllm.control.topology import UNKNOWN, Link, NodeFacts, Tier, TierUsage, typical_of
from tests.control.shapes import copy, facts, view

MODEL = Checkpoint("file:///m", 1000, "d")
REMOTE, POOL = (Tier.REMOTE, Tier.SSD), (Tier.SSD, Tier.DRAM)


def test_the_slowest_link_decides_and_not_the_sum() -> None:
    seconds = start_seconds(view(), MODEL, UNKNOWN)
    assert seconds == pytest.approx(1000 / 100 + 1.0)


def test_a_copy_on_ssd_leaves_the_way_to_the_pool() -> None:
    seconds = start_seconds(view(copies=[copy(size=1000)]), MODEL, UNKNOWN)
    assert seconds == pytest.approx(1000 / 1000 + 1.0)


def test_a_copy_in_the_pool_leaves_the_init() -> None:
    held = view(copies=[copy(tier=Tier.DRAM, size=1000)])
    assert start_seconds(held, MODEL, UNKNOWN) == pytest.approx(1.0)


def test_half_a_copy_halves_the_way() -> None:
    half = view(copies=[copy(size=1000, resident=500)])
    assert start_seconds(half, MODEL, UNKNOWN) == pytest.approx(500 / 100 + 1.0)


def test_what_is_queued_comes_first() -> None:
    links = {REMOTE: Link(100.0, queued_bytes=300), POOL: Link(1000.0)}
    seconds = start_seconds(view(facts(links=links)), MODEL, UNKNOWN)
    assert seconds == pytest.approx((300 + 1000) / 100 + 1.0)


def test_a_load_under_way_is_not_counted_twice() -> None:
    links = {REMOTE: Link(100.0, queued_bytes=600), POOL: Link(1000.0)}
    loading = view(facts(links=links), copies=[copy(size=1000, resident=400, leased=True)])
    assert start_seconds(loading, MODEL, UNKNOWN) == pytest.approx(600 / 100 + 1.0)


def test_what_a_node_has_not_observed_is_taken_from_the_fleet() -> None:
    others = [view(facts(f"n{bandwidth}", links={REMOTE: Link(bandwidth)})) for bandwidth in (1, 5)]
    typical = typical_of([*others, view(facts("n9", links={REMOTE: Link(50.0), POOL: Link(9.0)}))])
    new = view(facts("new", links={REMOTE: Link(0.0)}, init=None))
    seconds = start_seconds(new, MODEL, typical)
    assert seconds == pytest.approx(1000 / 5 + 1.0)


def test_what_nobody_has_observed_is_unknown() -> None:
    assert start_seconds(view(facts(links={})), MODEL, UNKNOWN) == math.inf
    assert start_seconds(view(facts(init=None)), MODEL, UNKNOWN) == math.inf


def test_without_a_digest_a_copy_is_known_by_its_source() -> None:
    held = view(copies=[copy("x", Tier.DRAM, size=1000, sources=("file:///m",))])
    unknown = Checkpoint("file:///m", 1000)
    assert start_seconds(held, unknown, UNKNOWN) == pytest.approx(1.0)


def test_a_device_of_its_own_is_one_link_more() -> None:
    device = NodeFacts(
        "gpu",
        "localhost:1",
        tiers={Tier.DEVICE: TierUsage(5000, 0)},
        links={(Tier.DRAM, Tier.DEVICE): Link(10.0)},
        init_time=1.0,
    )
    held = view(device, copies=[copy(tier=Tier.DRAM, size=1000)])
    assert start_seconds(held, MODEL, UNKNOWN) == pytest.approx(1000 / 10 + 1.0)
