"""Mechanisms on and off, one by one and together, on traces of several kinds.

Everything else is alike: two zones 50 ms apart, in one of which each model has nine tenths of its
callers; an instance whose tokens are slower by 2 % for each request that it has beside; idle
instances that stay for a minute, the default; and a store on one server for all that nodes lack.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from bench.simulation import policies
from bench.simulation.afar import Afar
from bench.simulation.azure import azure_trace
from bench.simulation.control import CONCURRENCY, Simulation
from bench.simulation.conversations import in_turns
from bench.simulation.experiments import LARGE_HOLDERS, LARGE_REPLICAS, LARGE_SERVERS, SERVERS
from bench.simulation.hardware import GB, REPLICAS, STORE_BYTES_PER_SECOND, Server
from bench.simulation.mechanisms import Mechanisms
from bench.simulation.node import SimulatedNode
from bench.simulation.workload import GSM8K, Trace, bursty_trace, deployments
from sllm.control.cluster.zones import zones_of

ZONES = ("cloud", "edge")
WAY_SECONDS = 0.05
AT_HOME = 0.9
"""Share of a model's requests that come from its callers' own zone."""
KEPT_BYTES = 40 * GB
"""A tenth of each pool, which then has that much less for weights."""
BEFORE = Mechanisms(keep_alive=60.0, zones=zones_of([(*ZONES, WAY_SECONDS)]), slowdown=0.02)
ZONED = replace(BEFORE, peers=True, moves_caches=True, near=True)
"""What a cluster has that asks for nothing, its nodes being in zones."""
ALL = replace(ZONED, kept_bytes=KEPT_BYTES, learned=True, target=1.5)
VARIANTS: Mapping[str, Mechanisms] = {
    "before": BEFORE,
    "weights from peers": replace(BEFORE, peers=True),
    "moves by tokens or cache": replace(BEFORE, moves_caches=True),
    "caches kept, 40 GB": replace(BEFORE, kept_bytes=KEPT_BYTES),
    "keep-alive learned, 60 s at most": replace(BEFORE, learned=True),
    "keep-alive learned, 600 s at most": replace(BEFORE, learned=True, keep_alive=600.0),
    "keep-alive fixed, 600 s": replace(BEFORE, keep_alive=600.0),
    "zones counted": replace(BEFORE, near=True),
    "shares by a target of 1.5": replace(BEFORE, target=1.5),
    "peers, moves and zones": ZONED,
    "all but shares": replace(ALL, target=None),
    "all": ALL,
}

AZURE_SECONDS = 2 * 3600.0
LARGE_RATE = 50.0


@dataclass(frozen=True, slots=True)
class Compared:
    """One variant in one setting; all but times of requests are sums."""

    setting: str
    variant: str
    first_token_p50: float
    first_token_p99: float
    pace_p99: float
    """Times the time that a token takes alone."""
    device_seconds: float
    """GPUs that instances had, busy or idle."""
    memory_seconds: float
    """GB of weights on them, times seconds."""
    store_bytes: float
    """GB that the store has given."""
    starts: int
    migrations: int


@dataclass(frozen=True, slots=True)
class Setting:
    """A trace on a cluster."""

    trace: Callable[[int], Trace]
    """From a seed."""
    servers: int = SERVERS
    holders: int = SERVERS
    """Servers on whose SSDs each model is."""

    def run(self, seed: int, mechanisms: Mechanisms) -> tuple[Simulation, Afar]:
        """One trace under some mechanisms; what the store has given is told beside it."""
        trace = from_zones(self.trace(seed), seed)
        afar = Afar(STORE_BYTES_PER_SECOND, mechanisms.peers)
        nodes = [self._node(index, trace, mechanisms, afar) for index in range(self.servers)]
        simulation = Simulation(nodes, trace, policies.sllm, CONCURRENCY, mechanisms)
        simulation.run()
        return simulation, afar

    def _node(self, index: int, trace: Trace, mechanisms: Mechanisms, afar: Afar) -> SimulatedNode:
        names = sorted(trace.models)
        held = [
            names[i]
            for copy in range(self.holders)
            for i in range((index + copy) % self.servers, len(names), self.servers)
        ]
        server = Server(dram_bytes=Server().dram_bytes - mechanisms.kept_bytes)
        zone = ZONES[index % len(ZONES)]
        node = SimulatedNode(f"server-{index:03d}", server, trace.models, held, zone, afar)
        node.fill_pool(names[index :: self.servers])
        return node


def compare(requests: int, seeds: range, large: int) -> Iterator[Compared]:
    """Every variant in every setting, as results come.

    Args:
        requests: of each trace on the paper's cluster; 0: none are looked at.
        seeds: of these.
        large: requests of the large fleet's; 0: it is not looked at.
    """
    models = deployments(REPLICAS)

    def bursts(rate: float) -> Callable[[int], Trace]:
        return lambda seed: bursty_trace(models, GSM8K, rate=rate, requests=requests, seed=seed)

    def azure(seed: int) -> Trace:
        return in_turns(azure_trace(models, seconds=AZURE_SECONDS, seed=seed), seed)

    settings: dict[str, tuple[Setting, range]] = {}
    if requests:
        settings = {
            "the paper's cluster, 2/s": (Setting(bursts(2.0)), seeds),
            "the paper's cluster, 8/s": (Setting(bursts(8.0)), seeds),
            "the same, each model on one SSD": (Setting(bursts(8.0), holders=1), seeds),
            "Azure's shape": (Setting(azure), seeds),
        }
    if large:
        settings["1,000 servers"] = _large(large), range(1, 2)
    for name, (setting, of) in settings.items():
        for variant, mechanisms in VARIANTS.items():
            yield _compared(name, variant, [setting.run(seed, mechanisms) for seed in of])


def _large(requests: int) -> Setting:
    models = deployments(LARGE_REPLICAS)

    def trace(seed: int) -> Trace:
        return bursty_trace(models, GSM8K, rate=LARGE_RATE, requests=requests, seed=seed)

    return Setting(trace, LARGE_SERVERS, LARGE_HOLDERS)


def _compared(setting: str, variant: str, runs: list[tuple[Simulation, Afar]]) -> Compared:
    instances = [simulation.instances for simulation, _ in runs]
    requests = [request for simulation, _ in runs for request in simulation.requests]
    first, paces = [one.first_token for one in requests], [one.pace for one in requests]
    return Compared(
        setting=setting,
        variant=variant,
        first_token_p50=float(np.percentile(first, 50)),
        first_token_p99=float(np.percentile(first, 99)),
        pace_p99=float(np.percentile(paces, 99)),
        device_seconds=sum(one.held_gpu_seconds for one in instances),
        memory_seconds=sum(one.held_byte_seconds for one in instances) / GB,
        store_bytes=sum(afar.from_store_bytes for _, afar in runs) / GB,
        starts=sum(len(one.starts) for one in instances),
        migrations=sum(one.migrations for one in instances),
    )


def from_zones(trace: Trace, seed: int) -> Trace:
    """The same requests, from callers who are somewhere."""
    random = np.random.default_rng(seed)
    homes = {name: random.integers(len(ZONES)) for name in sorted(trace.models)}
    away = random.uniform(size=len(trace.arrivals)) >= AT_HOME
    arrivals = [
        replace(one, zone=ZONES[(homes[one.deployment] + int(far)) % len(ZONES)])
        for one, far in zip(trace.arrivals, away, strict=True)
    ]
    return Trace(trace.models, arrivals)
