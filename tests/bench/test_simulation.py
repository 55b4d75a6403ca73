"""The simulator's own mechanics, on clusters that are small enough to follow by hand."""

from collections.abc import Callable, Mapping

import pytest

from bench.simulation import policies
from bench.simulation.control import Simulation
from bench.simulation.events import Events
from bench.simulation.hardware import GB, MIGRATION_SECONDS, Model, Server
from bench.simulation.node import SimulatedNode
from bench.simulation.policies import Policy, RandomNode
from bench.simulation.request import Request
from bench.simulation.results import Cell, outcome_of
from bench.simulation.workload import GSM8K, Arrival, Trace, bursty_trace, deployments

SERVER = Server(
    gpus=2,
    dram_bytes=40 * GB,
    ssd_bytes_per_second=1.0 * GB,
    remote_bytes_per_second=0.1 * GB,
    pcie_bytes_per_second=10.0 * GB,
    init_seconds=0.5,
)
SMALL = Model("small", 5e9)  # 10 GB: 10 s from SSD, 1 s from the pool
WIDE = Model("wide", 5e9, gpus=2)
PER_TOKEN = WIDE.prefill_seconds_per_token
POLICIES: Mapping[str, Callable[[], Policy]] = {
    "random": lambda: RandomNode(1),
    "locality": lambda: policies.locality,
    "preemption": lambda: policies.preemption,
    "same choice": lambda: policies.same_choice_preemption,
    "sllm": lambda: policies.sllm,
}
SOME = {SMALL: 8, WIDE: 3}


def cluster(models: Mapping[str, Model], servers: int = 1) -> list[SimulatedNode]:
    return [SimulatedNode(f"s{index}", SERVER, models) for index in range(servers)]


def run(
    trace: Trace, policy: Policy, nodes: list[SimulatedNode], concurrency: int = 4
) -> Simulation:
    simulation = Simulation(nodes, trace, policy, concurrency)
    simulation.run()
    return simulation


def bursts(rate: float = 0.3, seed: int = 1) -> Trace:
    return bursty_trace(deployments(SOME), GSM8K, rate=rate, requests=150, seed=seed)


def latencies(simulation: Simulation) -> list[float]:
    return [one.waited for one in simulation.requests]


# --- by hand ----------------------------------------------------------------------------------


def test_two_requests_by_hand() -> None:
    """The first reads 10 GB from SSD; the other waits for the SSD, then reads its own."""
    models = {"a": SMALL, "b": SMALL}
    trace = Trace(models, [Arrival(0.0, "a", 10, 10), Arrival(2.0, "b", 10, 10)])

    first, second = latencies(run(trace, policies.locality, cluster(models)))

    assert first == pytest.approx(10.0 + 0.5)
    assert second == pytest.approx((10.0 - 2.0) + 10.0 + 0.5)


def test_what_comes_while_the_instance_is_warm_waits_for_nothing() -> None:
    models = {"a": SMALL}
    trace = Trace(models, [Arrival(0.0, "a", 10, 500), Arrival(15.0, "a", 10, 10)])

    simulation = run(trace, policies.locality, cluster(models))

    assert latencies(simulation) == [pytest.approx(10.5), 0.0]
    assert len(simulation.instances.starts) == 1


def test_weights_stay_in_the_pool_when_the_instance_has_gone() -> None:
    models = {"a": SMALL}
    trace = Trace(models, [Arrival(0.0, "a", 10, 10), Arrival(100.0, "a", 10, 10)])

    assert latencies(run(trace, policies.locality, cluster(models)))[1] == pytest.approx(1.0 + 0.5)


def contended() -> tuple[Trace, list[SimulatedNode]]:
    """`long` runs on the only server that has `hot` in its pool, and fills it.

    The other server is empty, and has `long` in its pool.
    """
    models = {"long": WIDE, "hot": WIDE}
    nodes = cluster(models, servers=2)
    nodes[0].fill_pool(["long", "hot"])
    nodes[1].fill_pool(["long"])
    return Trace(models, [Arrival(0.0, "long", 100, 2000), Arrival(5.0, "hot", 10, 10)]), nodes


def test_without_migration_a_model_is_read_where_there_is_room() -> None:
    trace, nodes = contended()

    assert latencies(run(trace, policies.locality, nodes)) == pytest.approx([1.5, 10.5])


def test_migration_by_hand() -> None:
    """`long` is copied from the pool elsewhere, pauses for its tokens, and makes way."""
    trace, nodes = contended()
    simulation = run(trace, policies.sllm, nodes)

    long, hot = simulation.requests
    pause = long.waited - 1.5
    assert simulation.instances.migrations == 1
    assert pause == pytest.approx(MIGRATION_SECONDS + tokens_of(long, 5.0) * PER_TOKEN)
    assert hot.waited == pytest.approx(1.5 + pause + 1.5)


def tokens_of(request: Request, decoding: float) -> int:
    """Of its prompt, and those of `decoding` seconds, of which the prefill is the first part."""
    prompt = request.arrival.prompt_tokens
    return prompt + int((decoding - prompt * PER_TOKEN) / WIDE.seconds_per_token)


def test_preemption_by_hand() -> None:
    """`hot` starts at once; `long` starts anew elsewhere and computes its cache again."""
    trace, nodes = contended()
    simulation = run(trace, policies.preemption, nodes)

    long, hot = simulation.requests
    assert simulation.instances.preemptions == 1
    assert hot.waited == pytest.approx(1.5)
    assert long.first_wait == pytest.approx(1.5)
    again = MIGRATION_SECONDS + tokens_of(long, 3.5) * PER_TOKEN
    assert long.waited == pytest.approx(1.5 + 1.5 + again)


# --- always -----------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.05, 0.3, 2.0])
@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES.keys())
def test_every_request_is_served_in_full_once(policy: Callable[[], Policy], rate: float) -> None:
    trace = bursts(rate)
    simulation = run(trace, policy(), cluster(trace.models, servers=3))

    for request in simulation.requests:
        assert request.ended_at is not None  # that it ends only once, `Request.end` asserts
        spent = request.ended_at - request.arrival.at
        assert spent == pytest.approx(request.waited + request.service_seconds)
        assert request.first_wait is not None
        assert 0 <= request.first_wait <= request.waited + 1e-9


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES.keys())
def test_capacity_is_never_exceeded(
    policy: Callable[[], Policy], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checked after every moment; taking a GPU that is not there is asserted by the node itself."""
    trace = bursts(rate=1.0)
    simulation = Simulation(cluster(trace.models, servers=3), trace, policy(), concurrency=4)
    passed = simulation._pass
    moments = 0

    def check() -> None:
        nonlocal moments
        passed()
        simulation.check_integrity()
        moments += 1

    monkeypatch.setattr(simulation, "_pass", check)
    simulation.run()

    assert moments > len(trace.arrivals)
    assert not simulation.instances.running


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES.keys())
def test_the_same_seed_gives_the_same_result(policy: Callable[[], Policy]) -> None:
    trace = bursts()
    one, other = (run(bursts(), policy(), cluster(trace.models, servers=3)) for _ in range(2))

    assert latencies(one) == latencies(other)
    assert one.instances.starts == other.instances.starts


def test_estimates_are_what_starts_take_where_nothing_intervenes() -> None:
    trace = bursts(rate=0.05)
    simulation = run(trace, policies.locality, cluster(trace.models, servers=3))

    assert len(simulation.instances.starts) > 10
    for expected, took in simulation.instances.starts:
        assert took == pytest.approx(expected, abs=1e-6)


# --- parts ------------------------------------------------------------------------------------


def test_traces_have_the_rate_that_was_asked_for_and_come_in_bursts() -> None:
    trace = bursty_trace(deployments(SOME), GSM8K, rate=2.0, requests=4000, seed=3)

    gaps = [b.at - a.at for a, b in zip(trace.arrivals, trace.arrivals[1:], strict=False)]
    assert trace.seconds == pytest.approx(2000.0)
    assert min(gaps) >= 0
    mean = sum(gaps) / len(gaps)
    assert sum((gap - mean) ** 2 for gap in gaps) / len(gaps) > (2 * mean) ** 2
    assert {one.deployment for one in trace.arrivals} == set(trace.models)
    prompts = [one.prompt_tokens for one in trace.arrivals]
    assert sum(prompts) / len(prompts) == pytest.approx(GSM8K.prompt_tokens, rel=0.1)


def test_a_pool_evicts_what_is_missed_least_and_is_not_leased() -> None:
    models = dict.fromkeys("abcde", SMALL)
    node = SimulatedNode("s", SERVER, models)
    node.fill_pool("abcd")  # full
    held = node.begin_load("a", 0.0)
    for name in "bd":
        node.end_load(node.begin_load(name, 1.0))
    node.changed_copies(1.0)

    node.end_load(node.begin_load("e", 2.0))

    gone = {copy.digest for copy in node.changed_copies(2.0) if not copy.resident_bytes}
    assert gone == {"c", "e"}  # "e" has only begun to come
    node.end_load(held)
    node.check_integrity()


def test_what_finds_no_room_in_the_pool_passes_through() -> None:
    models = dict.fromkeys("abcde", SMALL)
    node = SimulatedNode("s", SERVER, models)
    node.fill_pool("abcd")
    for name in "abcd":
        node.begin_load(name, 0.0)

    assert node.begin_load("e", 0.0).ready_at == pytest.approx(10.5)
    node.check_integrity()


def test_a_model_that_is_far_away_comes_over_the_network() -> None:
    models = {"a": SMALL, "b": SMALL}
    node = SimulatedNode("s", SERVER, models, on_ssd=["a"])

    assert node.begin_load("b", 0.0).ready_at == pytest.approx(100.5)


def test_an_interruption_while_the_cache_is_computed_counts_once() -> None:
    request = Request(Arrival(0.0, "a", 1000, 1000), SMALL)
    request.serve(0.0)
    request.interrupt(10.0)
    request.serve(10.0)
    request.interrupt(10.0)  # before the cache was there again
    end = request.serve(12.0)

    again = request.resume_seconds
    assert request.waited == pytest.approx(2.0 + again)
    assert end == pytest.approx(request.service_seconds + 2.0 + again)


def test_actions_happen_in_the_order_of_time_and_then_of_being_set() -> None:
    events = Events()
    happened: list[str] = []
    events.at(2.0, lambda: happened.append("late"))
    events.at(1.0, lambda: happened.append("first"))
    events.at(1.0, lambda: happened.append("second"))

    events.run(lambda: happened.append(f"moment {events.clock.now():g}"))

    assert happened == ["first", "second", "moment 1", "late", "moment 2"]


def test_a_cluster_is_busy_between_idle_and_saturated() -> None:
    states = []
    for rate in (0.01, 20.0):
        trace = bursts(rate)
        outcome = outcome_of(run(trace, policies.sllm, cluster(trace.models, servers=3)))
        states.append(Cell("sllm", "some", rate, [outcome]).state)
    assert states == ["idle", "saturated"]
