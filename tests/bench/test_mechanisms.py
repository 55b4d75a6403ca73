"""Mechanisms in the simulator, on clusters that are small enough to follow by hand."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from bench.simulation import policies
from bench.simulation.afar import Afar
from bench.simulation.azure import azure_trace
from bench.simulation.comparison import AT_HOME, BEFORE, VARIANTS, WAY_SECONDS, from_zones
from bench.simulation.control import Simulation
from bench.simulation.conversations import in_turns
from bench.simulation.hardware import GB, OPT_6_7B, Server
from bench.simulation.mechanisms import Mechanisms
from bench.simulation.needs import seconds_per_token
from bench.simulation.node import SimulatedNode
from bench.simulation.workload import Arrival, Trace, deployments

MODELS = {"m": OPT_6_7B}
SECONDS = 3600.0


def run(
    arrivals: list[Arrival],
    mechanisms: Mechanisms,
    concurrency: int = 64,
    zones: Sequence[str] = ("a",),
) -> Simulation:
    nodes = [
        SimulatedNode(f"s{index}", Server(), MODELS, zone=zone) for index, zone in enumerate(zones)
    ]
    simulation = Simulation(nodes, Trace(MODELS, arrivals), policies.sllm, concurrency, mechanisms)
    simulation.run()
    simulation.check_integrity()
    return simulation


def asked(every: float, count: int, zone: str = "") -> list[Arrival]:
    return [Arrival(every * index, "m", 10, 10, zone) for index in range(count)]


def test_an_instance_that_is_asked_for_too_seldom_is_kept_no_longer_once_that_is_known() -> None:
    arrivals = asked(900.0, 40)
    fixed = run(arrivals, Mechanisms(keep_alive=600.0))
    learned = run(arrivals, Mechanisms(keep_alive=600.0, learned=True))
    assert learned.instances.held_gpu_seconds < 0.7 * fixed.instances.held_gpu_seconds
    waits = [[one.first_token for one in each.requests] for each in (fixed, learned)]
    assert waits[0] == pytest.approx(waits[1])  # each request finds it gone in either case


def test_one_that_is_asked_for_often_enough_stays() -> None:
    arrivals = asked(30.0, 100)
    fixed = run(arrivals, Mechanisms(keep_alive=60.0))
    learned = run(arrivals, Mechanisms(keep_alive=60.0, learned=True))
    assert len(learned.instances.starts) == len(fixed.instances.starts) == 1


def test_a_way_is_paid_whether_it_is_counted_or_not_and_spared_where_it_is() -> None:
    arrivals = asked(10.0, 5, zone="edge")
    far = replace(BEFORE, near=False)
    blind = run(arrivals, far, zones=("cloud", "edge"))
    seeing = run(arrivals, replace(far, near=True), zones=("cloud", "edge"))
    assert {one.way for one in blind.requests} == {WAY_SECONDS}
    assert {one.way for one in seeing.requests} == {0.0}


def test_a_target_gives_an_instance_fewer_requests_at_once() -> None:
    arrivals = asked(0.05, 400)
    slowed = Mechanisms(keep_alive=60.0, slowdown=0.2)
    before = run(arrivals, slowed)
    tuned = run(arrivals, replace(slowed, target=1.5))
    late = [np.median([one.pace for one in each.requests[200:]]) for each in (before, tuned)]
    assert late[1] < late[0]


@pytest.mark.parametrize(
    ("peers", "copies", "seconds"),
    [(True, 1, (100.0, 100.0, 200.0)), (False, 3, (100.0, 200.0, 300.0))],
)
def test_the_store_gives_a_model_once_to_peers_and_each_time_to_others(
    peers: bool, copies: int, seconds: tuple[float, ...]
) -> None:
    size, rate = 1000, 10.0
    afar, held = Afar(rate, peers), set[str]()
    afar.join({"a": lambda digest, now: "a" in held, "b": lambda digest, now: False})
    first = afar.complete_at("a", "m", size, 0.0, rate)
    beside = afar.complete_at("b", "m", size, 0.0, rate)
    held.add("a")
    after = afar.complete_at("b", "m", size, 100.0, rate)
    assert (first, beside, after) == seconds
    assert afar.from_store_bytes == copies * size


def test_a_conversation_that_returns_to_a_cold_model_has_its_cache_where_it_is_kept() -> None:
    arrivals = [
        Arrival(at, "m", 1000, 10, conversation="c", known_tokens=known)
        for at, known in ((0.0, 0), (10.0, 800), (500.0, 800))
    ]
    firsts = {
        kept: [one.prefill for one in run(arrivals, Mechanisms(60.0, kept_bytes=kept)).requests]
        for kept in (0, 10 * GB)
    }
    whole, warm, cold = firsts[0]
    assert warm == pytest.approx(0.2 * whole)  # its instance has it
    assert cold == whole
    assert warm < firsts[10 * GB][2] < 0.5 * whole


def test_a_move_sends_the_cache_only_where_that_is_sooner() -> None:
    slow, fast = 0.1 * GB, 100 * GB
    by_tokens = seconds_per_token([OPT_6_7B])
    assert seconds_per_token([OPT_6_7B], slow) == by_tokens > seconds_per_token([OPT_6_7B], fast)


def test_two_fifths_of_prompts_were_there_before() -> None:
    arrivals = [Arrival(float(at), "m", 100, 100) for at in range(2000)]
    trace = in_turns(Trace(MODELS, arrivals), seed=1)
    known = sum(one.known_tokens for one in trace.arrivals)
    assert known / 200_000 == pytest.approx(0.4, abs=0.03)


def test_azures_shape_is_what_was_published() -> None:
    models = deployments({OPT_6_7B: 200})
    trace = azure_trace(models, seconds=SECONDS, seed=1)
    asked_for = Counter(one.deployment for one in trace.arrivals)
    counts = np.array([asked_for[name] for name in models])
    often = counts >= SECONDS / 60
    assert 0.12 <= often.mean() <= 0.26
    assert counts[often].sum() / counts.sum() >= 0.9
    assert (counts <= 1).mean() >= 0.4
    assert [one.at for one in trace.arrivals] == sorted(one.at for one in trace.arrivals)
    assert all(0 <= one.at < SECONDS for one in trace.arrivals)


def test_most_callers_of_a_model_are_in_one_zone() -> None:
    trace = from_zones(Trace(MODELS, asked(1.0, 2000)), seed=1)
    zones = [one.zone for one in trace.arrivals]
    most = max(zones.count(zone) for zone in set(zones))
    assert most / len(zones) == pytest.approx(AT_HOME, abs=0.03)


def test_every_variant_is_of_the_same_cluster_and_load() -> None:
    for variant in VARIANTS.values():
        assert (variant.zones, variant.slowdown) == (BEFORE.zones, BEFORE.slowdown)
