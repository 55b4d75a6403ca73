"""Start estimates by hand."""

import math
from dataclasses import replace

import pytest

from sllm.control.cluster.init_times import InitKey, InitTime, InitTimes
from sllm.control.cluster.instances import InstanceState, Planned
from sllm.control.cluster.nodes import NodeFacts
from sllm.control.cluster.snapshot import UNKNOWN
from sllm.control.cluster.tiers import Copy, Link, Tier, TierUsage
from sllm.control.placement.start_estimate import start_estimate, start_seconds
from sllm.control.state.observations import Observations
from tests.control.shapes import copy, facts, instance, need, typical_of, view

MODEL = need(size=1000)
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


def made(tier: Tier, size: int = 1300, made_for: str = MODEL.engine) -> Copy:
    one = copy("made", tier, size=size)
    return replace(one, made_of=MODEL.checkpoint.digest, made_for=made_for, sources=())


def started(published: float, ready: float | None) -> NodeFacts:
    """A node that has seen what follows the load, over either form."""
    digest, engine = MODEL.checkpoint.digest, MODEL.engine
    times = {InitKey(digest, engine): InitTime(1000, 0.0, published)}
    if ready is not None:
        times[InitKey(digest, engine, ready_made=True)] = InitTime(1300, 0.0, ready)
    return replace(facts(dram=10_000), init_times=InitTimes(times))


@pytest.mark.parametrize(
    ("copies", "seconds"),
    [
        ([made(Tier.DRAM)], 0.2),
        ([made(Tier.SSD)], 1300 / 1000 + 0.2),
        ([copy(size=1000), made(Tier.SSD)], 1300 / 1000 + 0.2),
        ([copy(tier=Tier.DRAM, size=1000)], 4.0),
        ([copy(tier=Tier.DRAM, size=1000), made(Tier.DRAM)], 0.2),
        ([copy(tier=Tier.DRAM, size=1000), made(Tier.SSD)], 1300 / 1000 + 0.2),
        ([copy(tier=Tier.DRAM, size=1000), made(Tier.SSD, size=4001)], 4.0),
        ([copy(tier=Tier.DRAM, size=1000), made(Tier.DRAM, made_for="another")], 4.0),
    ],
)
def test_the_form_that_a_node_would_take_counts(copies: list[Copy], seconds: float) -> None:
    """By its own size, and by what starts over it took: with what is published in memory, the other
    is read from disk only where that takes less than a start over the former takes after its load.
    """
    there = view(started(published=4.0, ready=0.2), copies=copies)
    assert start_seconds(there, MODEL, UNKNOWN) == pytest.approx(seconds)


def test_a_form_for_which_memory_has_no_room_is_not_read_beside_what_is_there() -> None:
    tight = started(published=4.0, ready=0.2)
    tight = replace(tight, tiers={**tight.tiers, Tier.DRAM: TierUsage(2000, 1000)})
    copies = [copy(tier=Tier.DRAM, size=1000), made(Tier.SSD)]
    assert start_seconds(view(tight, copies=copies), MODEL, UNKNOWN) == pytest.approx(4.0)
    assert start_seconds(view(tight, copies=copies[1:]), MODEL, UNKNOWN) == pytest.approx(1.5)


def test_until_a_start_was_seen_over_a_form_it_takes_as_long_as_others() -> None:
    there = view(started(published=4.0, ready=None), copies=[made(Tier.DRAM)])
    assert start_seconds(there, MODEL, UNKNOWN) == pytest.approx(4.0)
    elsewhere = typical_of([view(started(published=3.0, ready=0.5))])
    assert start_seconds(there, MODEL, elsewhere) == pytest.approx(0.5)


def test_starts_over_forms_tell_nothing_of_other_models() -> None:
    other = need(size=1000, digest="other")
    there = view(started(published=4.0, ready=0.2), copies=[copy("other", Tier.DRAM, size=1000)])
    assert start_seconds(there, other, UNKNOWN) == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("copies", "seconds"),
    [
        ([], 1000 / 100 + 200 / 1000),
        ([copy(size=1000, resident=500)], 500 / 100 + 200 / 1000),
        ([copy(size=1000)], 200 / 1000),
        ([copy(size=1000), copy(tier=Tier.DRAM, size=1000)], 200 / 1000),
    ],
)
def test_of_what_stays_on_ssd_a_start_reads_all_but_the_experts(
    copies: list[Copy], seconds: float
) -> None:
    """Once it is there: a worker reads it by itself, whatever the pool has."""
    mixture = replace(MODEL, expert_memory=300, resident_bytes=200)
    found = start_seconds(view(copies=copies), mixture, UNKNOWN)
    assert found == pytest.approx(seconds + 1.0)


def test_what_was_made_ready_for_another_engine_does_not_count() -> None:
    nothing = start_seconds(view(), MODEL, UNKNOWN)
    there = view(copies=[made(Tier.DRAM, made_for="another")])
    assert start_seconds(there, MODEL, UNKNOWN) == nothing


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
    unknown = need(size=1000, digest="")
    assert start_seconds(held, unknown, UNKNOWN) == pytest.approx(1.0)


# --- init times -------------------------------------------------------------------------------


def _init_times(**seconds: tuple[int, float, float]) -> InitTimes:
    """By digest: size in bytes, seconds of preparing, seconds of attaching."""
    return InitTimes({InitKey(key, "transformers"): InitTime(*one) for key, one in seconds.items()})


def test_a_worker_is_prepared_beside_the_load() -> None:
    known = replace(facts(), init_times=_init_times(d=(1000, 0.4, 0.3)))
    on_ssd = view(known, copies=[copy(size=1000)])
    assert start_seconds(on_ssd, MODEL, UNKNOWN) == pytest.approx(max(1.0, 0.4) + 0.3)
    in_pool = view(known, copies=[copy(tier=Tier.DRAM, size=1000)])
    assert start_seconds(in_pool, MODEL, UNKNOWN) == pytest.approx(0.4 + 0.3)


def test_also_beside_an_import() -> None:
    known = replace(facts(), init_times=_init_times(d=(1000, 0.4, 0.3)))
    assert start_seconds(view(known), MODEL, UNKNOWN) == pytest.approx(10.0 + 0.3)


def test_the_init_of_the_checkpoint_itself_comes_first_and_then_that_of_the_fleet() -> None:
    held = [copy(tier=Tier.DRAM, size=1000)]
    other = view(replace(facts("n2"), init_times=_init_times(d=(1000, 0.5, 0.5))))
    typical = typical_of([other])
    own = view(replace(facts(), init_times=_init_times(d=(1000, 0.1, 0.1))), copies=held)
    assert start_seconds(own, MODEL, typical) == pytest.approx(0.2)
    new = view(replace(facts(), init_times=_init_times(x=(1000, 3.0, 3.0))), copies=held)
    assert start_seconds(new, MODEL, typical) == pytest.approx(1.0)


def test_the_init_of_a_model_that_nobody_has_started_follows_from_its_size() -> None:
    init_times = _init_times(small=(200, 0.1, 0.2), large=(600, 0.1, 0.6))
    node = view(replace(facts(), init_times=init_times), copies=[copy(tier=Tier.DRAM, size=1000)])
    assert start_seconds(node, MODEL, UNKNOWN) == pytest.approx(0.1 + 1.0)


def test_starts_that_were_decided_on_are_ahead_in_the_queue() -> None:
    starting = instance("i9", "o", state=InstanceState.STARTING)
    held = [copy(size=1000), copy("x", size=500, sources=("file:///x",))]
    before = replace(view(copies=held), planned={"i9": Planned(starting, "x", 500)}, memo={})
    assert start_seconds(before, MODEL, UNKNOWN) == pytest.approx(0.5 + 1.0 + 1.0)
    links = {REMOTE: Link(100.0), POOL: Link(1000.0, queued_bytes=300)}
    on_its_way = copy("x", Tier.DRAM, size=500, resident=200, leased=True)
    told = view(facts(links=links), copies=[*held, on_its_way])
    told = replace(told, planned=before.planned, memo={})
    assert start_seconds(told, MODEL, UNKNOWN) == pytest.approx(0.3 + 1.0 + 1.0)


def test_what_starts_take_now_besides_the_load_is_allowed_for() -> None:
    busy = Observations()
    held = view(facts(init=2.0), copies=[copy(tier=Tier.DRAM, size=1000)])
    for _ in range(5):
        estimate = start_seconds(held, MODEL, busy.typical())
        busy.start_ended(estimate, 3.0)
    assert start_seconds(held, MODEL, busy.typical()) == pytest.approx(3.0)


def test_one_start_that_was_held_up_says_nothing_of_the_others() -> None:
    observed = Observations()
    for actual in (1.0, 1.0, 30.0, 1.0):
        observed.start_ended(observed.typical().slowness, actual)
    assert observed.typical().slowness == pytest.approx(1.0)
    for _ in range(9):
        observed.start_ended(observed.typical().slowness, 1000.0)
    assert observed.typical().slowness == 2.0


def test_the_parts_of_an_estimate_follow_one_another() -> None:
    links = {REMOTE: Link(100.0, queued_bytes=300), POOL: Link(1000.0)}
    estimate = start_estimate(view(facts(links=links)), MODEL, UNKNOWN)
    assert estimate == pytest.approx((3.0, 10.0, 1.0))


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
