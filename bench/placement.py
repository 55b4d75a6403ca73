"""Placement decisions: how many in a second, how long the slow ones take, and how both grow.

    python bench/placement.py [--json FILE]

A fleet of nodes holds 10,000 checkpoints, each on the SSD tier of three nodes or so and some in
memory as well. One demand after the other is decided on, a snapshot taken for each, and carried
out in the fleet: the instance is planned, becomes ready, serves, idles, and ends when another one
needs its room or many others have started since. What is timed is the snapshot and the decision.
"""

import argparse
import itertools
import math
import random
import statistics
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.report import print_table, write_figures
from sllm.control.cluster.instances import Instance, InstanceState, Planned
from sllm.control.cluster.needs import Checkpoint, Need
from sllm.control.cluster.nodes import NodeFacts
from sllm.control.cluster.tiers import Copy, Link, Tier, TierUsage
from sllm.control.placement.decisions import Demand, Start
from sllm.control.placement.placement import place
from sllm.control.requests.slots import Slots
from sllm.control.state.fleet import Fleet
from sllm.control.types.reports import Full, Report

GB = 10**9
CHECKPOINTS = 10_000
COPIES = 3
"""Nodes that hold a checkpoint on SSD, on average."""
SIZES = (1, 3, 7, 13, 30)
"""Of checkpoints, in GB."""
RUNNING_PER_NODE = 8
"""As many as the KV budget holds: most starts have to end an idle instance first."""
NODES = (10, 100, 1000)


def need(index: int) -> Need:
    """One of the deployments."""
    size = SIZES[index % len(SIZES)] * GB
    return Need(f"m{index}", Checkpoint(f"file:///m{index}", size, f"d{index}"), 4 * GB, GB)


def facts(node_id: str, chance: random.Random) -> NodeFacts:
    """A node of 64 GB for weights and 32 GB for KV caches, whose speeds are its own."""
    return NodeFacts(
        node_id=node_id,
        address=f"{node_id}:1",
        tiers={Tier.SSD: TierUsage(4000 * GB, 0), Tier.DRAM: TierUsage(64 * GB, 0)},
        links={
            (Tier.REMOTE, Tier.SSD): Link(chance.uniform(0.5, 1.5) * GB, chance.randrange(GB)),
            (Tier.SSD, Tier.DRAM): Link(chance.uniform(4, 6) * GB, chance.randrange(GB)),
        },
        kv_capacity=32 * GB,
        init_time=chance.uniform(0.5, 2.0),
    )


class Cluster:
    """A fleet, and what its instances are used for."""

    def __init__(self, nodes: int, chance: random.Random) -> None:
        self.fleet, self.slots = Fleet(), Slots()
        self._chance = chance
        self._needs = [need(index) for index in range(CHECKPOINTS)]
        self._numbers = itertools.count()
        self._running: deque[Instance] = deque()
        self._most = RUNNING_PER_NODE * nodes
        held = self._copies([f"n{index:04}" for index in range(nodes)])
        for node_id, copies in held.items():
            full = Full(facts(node_id, chance), tuple(copies))
            self.fleet.apply(Report(node_id, 1, full), 0.0)

    def _copies(self, node_ids: list[str]) -> dict[str, list[Copy]]:
        held: dict[str, list[Copy]] = {node_id: [] for node_id in node_ids}
        for one in self._needs:
            checkpoint = one.checkpoint
            for node_id in self._chance.sample(node_ids, min(COPIES, len(node_ids))):
                size, sources = checkpoint.size_bytes, (checkpoint.source,)
                held[node_id].append(Copy(checkpoint.digest, Tier.SSD, size, size, sources))
                if self._chance.random() < 0.01:
                    held[node_id].append(Copy(checkpoint.digest, Tier.DRAM, size, size, sources))
        return held

    def decide(self) -> float:
        """Decides on one demand and carries it out; returns the seconds that deciding took."""
        # Few are asked for often, most hardly ever.
        wanted = self._needs[int(CHECKPOINTS * self._chance.random() ** 3)]
        began = time.perf_counter()
        snapshot = self.fleet.snapshot(self.slots.uses, frozenset())
        decision = place(snapshot, Demand(wanted))
        seconds = time.perf_counter() - began
        if isinstance(decision.action, Start):
            self._start(decision.action, wanted)
        return seconds

    def _start(self, start: Start, wanted: Need) -> None:
        for victim in start.victims:
            self._end(victim)
        name = f"i{next(self._numbers)}"
        starting = InstanceState.STARTING
        instance = Instance(name, wanted.deployment, start.node_id, starting, start.kv_bytes)
        self.fleet.plan(Planned(instance, wanted.checkpoint.key, wanted.checkpoint.size_bytes))
        self._running.append(instance)
        self._serve_older()

    def _serve_older(self) -> None:
        """The start before is ready and idle; the oldest instance ends."""
        if len(self._running) > 1:
            one = self._running[-2]
            ready = replace(one, state=InstanceState.READY, digest="")
            self.fleet.settle(one.node_id, one.instance_id, ready)
            self.slots.add(one.instance_id, one.node_id, float(next(self._numbers)))
        if len(self._running) > self._most:
            self._end(self._running.popleft().instance_id)

    def _end(self, instance_id: str) -> None:
        if instance := self.fleet.instance(instance_id):
            self.fleet.leave(instance_id)
            self.fleet.settle(instance.node_id, instance_id, None)
        self.slots.forget(instance_id)


def timed(nodes: int, decisions: int) -> list[float]:
    """Seconds of each of as many decisions, in a fleet that has been used for a while."""
    cluster = Cluster(nodes, random.Random(nodes))
    for _ in range(decisions // 4):
        cluster.decide()
    return [cluster.decide() for _ in range(decisions)]


def rows(taken: dict[int, list[float]]) -> Iterator[list[str]]:
    """The table: one line for each size of fleet."""
    for nodes, seconds in taken.items():
        p50, p99 = percentile(seconds, 50), percentile(seconds, 99)
        rate = len(seconds) / sum(seconds)
        yield [f"{nodes:,}", f"{rate:,.0f}", *(f"{1000 * one:.3f}" for one in (p50, p99))]


def percentile(values: list[float], percent: int) -> float:
    """The value that so many percent do not exceed."""
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def main() -> None:
    """Runs, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--decisions", type=int, default=4000, help="for each size of fleet")
    parser.add_argument("--json", type=Path, help="file for the main figures")
    options = parser.parse_args()
    taken = {nodes: timed(nodes, options.decisions) for nodes in NODES}
    columns = ("nodes", "decisions/s", "p50, ms", "p99, ms")
    print_table(f"Placement over {CHECKPOINTS:,} checkpoints", columns, list(rows(taken)))
    few, many = (statistics.mean(taken[nodes]) for nodes in (NODES[-2], NODES[-1]))
    growth = math.log(many / few) / math.log(NODES[-1] / NODES[-2])
    print(f"From {NODES[-2]} to {NODES[-1]} nodes the time grows as nodes^{growth:.2f}.")
    write_figures(
        options.json,
        {
            "decisions_per_second_1000_nodes": len(taken[1000]) / sum(taken[1000]),
            "p99_seconds_1000_nodes": percentile(taken[1000], 99),
            "growth_exponent": growth,
        },
    )


if __name__ == "__main__":
    main()
