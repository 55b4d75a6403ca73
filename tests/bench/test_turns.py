"""More models asked for than fit, under a clock that is moved by hand: they take turns."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.simulation import policies
from bench.simulation.control import CONFIG, Simulation
from bench.simulation.hardware import GB, Model, Server
from bench.simulation.node import SimulatedNode
from bench.simulation.workload import Arrival, Trace
from tests.properties import examples

SERVER = Server(
    gpus=1,
    dram_bytes=100 * GB,
    ssd_bytes_per_second=10.0 * GB,
    remote_bytes_per_second=1.0 * GB,
    pcie_bytes_per_second=10.0 * GB,
    init_seconds=0.5,
)
MODEL = Model("small", 5e9)
START_SECONDS = 10 / 10 + 0.5
"""From the pool, and from SSD where it is there."""
TURN_SECONDS = CONFIG.residency_factor * START_SECONDS


def run(arrivals: Sequence[Arrival], models: int) -> Simulation:
    names = {f"m{index}": MODEL for index in range(models)}
    nodes = [SimulatedNode("s0", SERVER, names)]
    trace = Trace(names, sorted(arrivals, key=lambda one: one.at))
    simulation = Simulation(nodes, trace, policies.locality)
    simulation.run()
    simulation.check_integrity()
    return simulation


def starts(simulation: Simulation) -> int:
    return len(simulation.instances.starts)


@pytest.mark.parametrize("models", [2, 3, 5])
def test_all_are_served_in_turns_and_few_turns_are_taken(models: int) -> None:
    """Each model is asked for every second, and one fits: each request would displace the last."""
    seconds = 300
    arrivals = [
        Arrival(at + index / 100, f"m{index}", prompt_tokens=20, output_tokens=5)
        for at in range(seconds)
        for index in range(models)
    ]
    simulation = run(arrivals, models)
    cycle = models * (TURN_SECONDS + START_SECONDS + CONFIG.drain_patience_seconds)
    assert max(one.waited for one in simulation.requests) <= cycle
    assert starts(simulation) <= models + seconds / TURN_SECONDS


arrivals = st.builds(
    Arrival,
    st.floats(0.0, 60.0),
    st.sampled_from([f"m{index}" for index in range(4)]),
    prompt_tokens=st.integers(1, 100),
    output_tokens=st.integers(1, 100),
)


@examples(60)
@given(st.lists(arrivals, min_size=1, max_size=60))
def test_nobody_starves_whatever_is_asked_for(asked: list[Arrival]) -> None:
    """At worst all others have a turn before, each with the longest of its requests at the end."""
    simulation = run(asked, 4)
    longest = max(one.service_seconds for one in simulation.requests)
    patience = CONFIG.drain_patience_seconds
    turn = TURN_SECONDS + START_SECONDS + longest + patience
    assert max(one.waited for one in simulation.requests) <= 4 * turn + patience
