"""Checkpoints from other nodes, beside the object store alone, on links of bounded rate.

    make bench-peers BENCH='--json FILE'

Each node's store is a process in a network namespace of its own, and so is the object store: every
one sends and gets `--megabits` at most, but for one node that gets what four send where that is
said. In each round all cases run once; nodes have nothing of the checkpoint before. Takes root, for
the namespaces.
"""

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Annotated, Final

import typer
from torch import randn

from bench.report import print_table, spread, write_figures
from bench.sharing.fleet import Fleet, ObjectStore, object_store
from bench.sharing.network import network
from sllm.checkpoint.format.manifest import Manifest
from sllm.checkpoint.importing.import_plan import plan_import
from sllm.checkpoint.importing.importer import import_checkpoint
from sllm.checkpoint.sources.sources import LocalSource, inspect
from tests.checkpoint.checkpoints import write_model
from tests.node.peers.nodes import StoreProcess

MIB: Final = 1 << 20
SOURCES: Final = 4
NODES: Final = (2, 4, 8)
KILLED_AT: Final = (0.1, 0.5, 0.9)
"""Of the time that all four sources take."""


@dataclass(slots=True)
class Case:
    """What was measured, an entry for every round."""

    seconds: list[float] = field(default_factory=list)
    """Until the last node had it."""
    asked: list[float] = field(default_factory=list)
    """Copies that left the object store."""


@dataclass(frozen=True, slots=True)
class Run:
    """Nodes that get the checkpoint at once."""

    takers: int = 1
    holders: int = 0
    swap: bool = False
    """Whether takers know of one another."""
    wide: bool = False
    """Whether the taker's link takes what all holders send."""
    plain: bool = False
    """Whether they get safetensors that nobody has packed."""
    killed_at: float = 0.0
    """Of the seconds that it takes otherwise, when one holder is killed. 0: none is."""

    @property
    def name(self) -> str:
        """As it is told."""
        whom = f"{self.holders} nodes" if self.holders else "the store"
        more = [
            *(["at once"] if self.wide else []),
            *(["swapping"] if self.swap else []),
            *(["not packed"] if self.plain else []),
            *([f"one killed at {self.killed_at:.0%}"] if self.killed_at else []),
        ]
        return ", ".join([f"{self.takers} from {whom}", *more])


STORE: Final = Run()
KILLS: Final = [
    Run(holders=SOURCES, wide=wide, killed_at=killed_at)
    for wide in (True, False)
    for killed_at in KILLED_AT
]
RUNS: Final = [
    STORE,
    Run(takers=2),
    Run(holders=1, wide=True),
    Run(holders=SOURCES, wide=True),
    Run(holders=SOURCES),
    *KILLS,
    *(Run(takers=count, swap=True) for count in NODES),
    *(Run(takers=count, holders=1, swap=True) for count in NODES),
    Run(takers=NODES[-1], swap=True, plain=True),
]


class Bench:
    """The nodes, what they are told, and what was measured."""

    def __init__(self, fleet: Fleet, store: ObjectStore, manifest: Manifest) -> None:
        self.cases = {run.name: Case() for run in RUNS}
        self._fleet = fleet
        self._store = store
        self._manifest = manifest

    def measure(self, run: Run) -> None:
        """One case, once."""
        nodes, case = self._fleet.nodes, self.cases[run.name]
        takers = nodes[: run.takers]
        holders = nodes[run.takers : run.takers + run.holders]
        with self._fleet.unlimited():
            self._hold(holders)
        if run.wide:
            self._fleet.widen(takers[0], 2 * SOURCES)
        self._store.asked()
        began = time.perf_counter()
        self._tell(run, takers, holders)
        if run.killed_at:
            without = self.cases[Run(holders=run.holders, wide=run.wide).name]
            time.sleep(run.killed_at * median(without.seconds))
            holders[0].process.kill()
        for node in takers:
            _done(node)
        case.seconds.append(time.perf_counter() - began)
        case.asked.append(self._store.asked() / self._manifest.size_bytes)
        self._forget()

    def _hold(self, nodes: Sequence[StoreProcess]) -> None:
        for node in nodes:
            node.promote(self._store.packed, tier="DRAM")
        for node in nodes:
            _done(node)

    def _tell(
        self, run: Run, takers: Sequence[StoreProcess], holders: Sequence[StoreProcess]
    ) -> None:
        source = self._store.plain if run.plain else self._store.packed
        digest = self._manifest.digest if holders else ""
        for number, node in enumerate(takers):
            fellows = takers[:number] if run.swap else ()
            named = [*((one, True) for one in fellows), *((one, False) for one in holders)]
            node.promote_from(source, named, digest=digest, tier="DRAM")

    def _forget(self) -> None:
        self._fleet.mend()
        with ThreadPoolExecutor() as threads:
            list(threads.map(lambda one: one.evict(self._manifest.digest), self._fleet.nodes))

    def seconds(self, run: Run) -> float:
        """The median of a case."""
        return median(self.cases[run.name].seconds)

    def copies(self, run: Run) -> float:
        """Copies that left the object store, on average of all rounds."""
        asked = self.cases[run.name].asked
        return sum(asked) / len(asked)

    def cost_of_kill(self, run: Run) -> float:
        """Time beyond what the sources that are left could do, as a part of it."""
        all_there = self.seconds(Run(holders=run.holders, wide=run.wide))
        slower = run.holders / (run.holders - 1) if run.wide else 1.0
        least = all_there * (run.killed_at + (1 - run.killed_at) * slower)
        return self.seconds(run) / least - 1


def _done(node: StoreProcess) -> None:
    answer = node.answer()
    if "error" in answer:
        raise RuntimeError(f"{node.node_id}: {answer}")


def make_checkpoint(web: Path, megabytes: int, chunk_bytes: int) -> Manifest:
    """A model of random weights, plain and packed, in a web server's directory."""
    tensors = {f"layer{n}": randn(MIB // 4) for n in range(megabytes)}
    plan = plan_import(inspect(LocalSource(write_model(web / "plain", tensors))), None)
    return import_checkpoint(
        plan,
        web / "packed",
        chunk_bytes=chunk_bytes,
        progress=lambda loaded, total: None,
        cancelled=lambda: False,
    )


@contextmanager
def benched(megabits: float, megabytes: int, chunk_bytes: int) -> Iterator[Bench]:
    """All that is there for a run, and gone afterwards."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-peers-")))
        web = directory / "web"
        web.mkdir()
        manifest = make_checkpoint(web, megabytes, chunk_bytes)
        machines = stack.enter_context(network(f"b{os.getpid()}n", NODES[-1] + 2, megabits))
        store = stack.enter_context(object_store(web, machines[-1]))
        fleet = Fleet(directory, machines[:-1], machines[-1], megabits, manifest)
        stack.enter_context(fleet)
        yield Bench(fleet, store, manifest)


def main(
    rounds: Annotated[int, typer.Option(min=1)] = 2,
    megabits: Annotated[float, typer.Option(help="Per second, of each link.")] = 30.0,
    megabytes: Annotated[int, typer.Option(help="Of the checkpoint.")] = 24,
    chunk_kib: Annotated[int, typer.Option(help="Of a chunk.")] = 384,
    json: Annotated[Path | None, typer.Option(help="Where to write the main figures.")] = None,
) -> None:
    """See the module."""
    if os.geteuid():
        raise typer.BadParameter("network namespaces take root")
    with benched(megabits, megabytes, chunk_kib << 10) as bench:
        for _ in range(rounds):
            for run in RUNS:
                bench.measure(run)
        report(bench, megabytes * MIB * 8 / (megabits * 1e6), json)


def report(bench: Bench, copy_seconds: float, path: Path | None) -> None:
    """What was measured, as a table and as figures. `copy_seconds`: one copy's, over one link."""
    one = bench.seconds(STORE)
    rows = [
        [name, spread(case.seconds, "s"), f"{median(case.seconds) / one:.2f}",
         f"{median(case.asked):.2f}"]
        for name, case in bench.cases.items()
    ]  # fmt: skip
    print_table(
        f"Until all nodes have it; a copy takes {copy_seconds:.1f} s of a link",
        ["nodes", "seconds", "times one", "copies from the store"],
        rows,
    )
    from_one, from_four = (bench.seconds(Run(holders=n, wide=True)) for n in (1, SOURCES))
    swapping = Run(takers=NODES[-1], swap=True)
    write_figures(
        path,
        {
            "rate_ratio_4_sources": from_one / from_four,
            "multicast_8_ratio": bench.seconds(Run(NODES[-1], holders=1, swap=True)) / one,
            "swap_8_ratio": bench.seconds(swapping) / one,
            "store_copies_8": bench.copies(swapping),
            "plain_copies_8": bench.copies(Run(NODES[-1], swap=True, plain=True)),
            "kill_cost": max(bench.cost_of_kill(run) for run in KILLS if not run.wide),
            "kill_cost_4_links": max(bench.cost_of_kill(run) for run in KILLS if run.wide),
        },
    )


if __name__ == "__main__":
    typer.run(main)
