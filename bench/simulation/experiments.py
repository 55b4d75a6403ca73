"""The settings that are simulated: the paper's cluster over a sweep of rates, and a large fleet."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from bench.simulation import policies
from bench.simulation.control import CONCURRENCY, Simulation
from bench.simulation.hardware import OPT_6_7B, OPT_13B, OPT_30B, REPLICAS, Server
from bench.simulation.node import SimulatedNode
from bench.simulation.policies import Policy, RandomNode
from bench.simulation.results import Cell, Outcome, outcome_of
from bench.simulation.workload import GSM8K, SHAREGPT, Dataset, bursty_trace, deployments

SERVERS = 4
RATES = {
    GSM8K: (2.0, 5.0, 8.0, 9.5, 11.0, 13.0, 15.0),
    SHAREGPT: (0.7, 1.7, 2.5, 3.0, 3.5, 4.0, 5.5),
}
"""Requests per second over all models, from hardly any to too many."""
POLICIES: Mapping[str, Callable[[int], Policy]] = {
    "random": RandomNode,
    "locality": lambda seed: policies.locality,
    "preemption": lambda seed: policies.preemption,
    "sllm": lambda seed: policies.sllm,
}
"""By name, from a seed."""
BESIDE = "sllm, preempting"
"""The policy that stops what `sllm` would migrate; for a look at what migration itself is worth."""

INSTANT = "instant starts"
"""Locality where starts take no time: who waits then, waits for a GPU that others hold."""
INSTANT_SERVER = Server(ssd_bytes_per_second=1e18, pcie_bytes_per_second=1e18, init_seconds=0.0)

LARGE_SERVERS = 1000
LARGE_REPLICAS = {OPT_6_7B: 5714, OPT_13B: 2857, OPT_30B: 1429}
"""10,000 models, in the proportion of the others."""
LARGE_HOLDERS = 4
"""Servers on whose SSDs a model is."""
LARGE_RATE = 1500.0


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is simulated of each rate."""

    seeds: Sequence[int]
    """One for each trace."""
    requests: int
    """Of a trace."""
    concurrency: int = CONCURRENCY
    """Requests that an instance works on at once."""


def sweep(scale: Scale) -> Iterator[Cell]:
    """Every policy at every rate, as results come."""
    for dataset, rates in RATES.items():
        for rate in rates:
            for name, make in POLICIES.items():
                yield cell(name, make, dataset, rate, scale)
            instant = POLICIES["locality"]
            yield cell(INSTANT, instant, dataset, rate, scale, INSTANT_SERVER)


def beside(dataset: Dataset, rate: float, scale: Scale) -> Cell:
    """The policy that stops what `sllm` would migrate."""
    return cell(BESIDE, lambda seed: policies.same_choice_preemption, dataset, rate, scale)


def cell(
    name: str,
    make: Callable[[int], Policy],
    dataset: Dataset,
    rate: float,
    scale: Scale,
    server: Server = Server(),  # noqa: B008 - it is frozen
) -> Cell:
    """One policy at one rate on the paper's cluster; all policies see the same traces."""
    models = deployments(REPLICAS)
    outcomes = []
    for seed in scale.seeds:
        trace = bursty_trace(models, dataset, rate=rate, requests=scale.requests, seed=seed)
        nodes = [SimulatedNode(f"server-{i}", server, models) for i in range(SERVERS)]
        for index, node in enumerate(nodes):  # every model is in one pool when the trace begins
            node.fill_pool(sorted(models)[index::SERVERS])
        simulation = Simulation(nodes, trace, make(seed), scale.concurrency)
        simulation.run()
        outcomes.append(outcome_of(simulation))
    return Cell(name, dataset.name, rate, outcomes)


def large(requests: int, seed: int) -> Outcome:
    """A short trace on 1,000 servers with 10,000 models, pools filled, under `sllm`.

    A model is on the SSDs of a few servers; the others would bring it from afar.
    """
    models = deployments(LARGE_REPLICAS)
    names = sorted(models)
    nodes = []
    for index in range(LARGE_SERVERS):
        first = [names[i] for i in range(index, len(names), LARGE_SERVERS)]
        others = [
            names[i]
            for copy in range(1, LARGE_HOLDERS)
            for i in range((index + copy) % LARGE_SERVERS, len(names), LARGE_SERVERS)
        ]
        node = SimulatedNode(f"server-{index:03d}", Server(), models, [*first, *others])
        node.fill_pool([*first, *others])
        nodes.append(node)
    trace = bursty_trace(models, GSM8K, rate=LARGE_RATE, requests=requests, seed=seed)
    simulation = Simulation(nodes, trace, policies.sllm)
    simulation.run()
    return outcome_of(simulation)
