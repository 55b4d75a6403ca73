"""Two models in turn where one fits: how long each switch takes, and whether memory stays flat.

    make bench-switch BENCH='--switches 200 --json FILE'

A node has room for the KV cache of one instance. Each request is for the model that is not there,
so the other's instance leaves and this one's starts. Once with a pool that holds both, and once
with one that holds little more than one, so that the other comes from SSD. Requests wait for the
end of turns before they are sent: where models take them without a pause, that is part of a switch.
"""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Annotated

import psutil
import typer
from make_models import make_model

from bench.inference.timing import PROMPT_TOKENS
from bench.inference.wire import Deployed
from bench.local_cluster import DEFAULT_ENGINE, GIB, MIB, LocalCluster, local_cluster
from bench.report import print_table, spread, write_figures

SHAPE = "qwen2-0.5b"
VOCABULARY = 1024
PATIENCE = 600.0
"""Seconds in which weights are made ready, and that an instance stays without requests."""
POOLS = {"DRAM": 5 * GIB, "SSD": 1600 * MIB}
"""Of the node, by where the model that is switched to comes from."""
KV_BYTES = 300 * MIB
"""An instance asks for 192 MiB."""
TURN_SECONDS = 2.0
"""For which an instance that has come back keeps its room, at most: as long as its start took."""
EDGE = 10
"""Switches at either end between which memory is compared."""


@dataclass(slots=True)
class Switching:
    """Two deployments of one node, and what was measured of them."""

    cluster: LocalCluster
    turns: tuple[Deployed, Deployed]
    seconds: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    """Bytes of all processes of the cluster after each switch, shared pages counted once."""

    def prepare(self) -> None:
        """Starts each twice; their weights are made ready meanwhile."""
        for one in self.turns:
            one.deploy(keep_alive=PATIENCE)
            one.first_token(PROMPT_TOKENS)
            self._wait_for_ready_weights()
        for one in self.turns * 2:
            one.first_token(PROMPT_TOKENS)

    def switch(self, number: int) -> None:
        """Asks the model that is not there, once the other's turn is over."""
        time.sleep(TURN_SECONDS)
        turn = self.turns[number % 2]
        self.seconds.append(turn.first_token(PROMPT_TOKENS))
        names = {one.deployment for one in self.cluster.client.instances()}
        if turn.name not in names:
            raise RuntimeError(f"{turn.name} has answered, and runs nowhere")
        if len(names) > 1:
            raise RuntimeError("both fit: nothing was switched")
        self.memory.append(_memory(self.cluster.process))

    @property
    def growth(self) -> int:
        """Bytes that the last switches have more than the first."""
        return int(median(self.memory[-EDGE:]) - median(self.memory[:EDGE]))

    def _wait_for_ready_weights(self) -> None:
        running = {one.digest for one in self.cluster.client.instances()}
        until = time.monotonic() + PATIENCE
        while not running <= {one.made_of for one in self.cluster.client.nodes()[0].copies}:
            if time.monotonic() > until:
                raise TimeoutError("weights were not made ready")
            time.sleep(0.5)


def _memory(process: psutil.Process) -> int:
    found = 0
    for one in (process, *process.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):  # a worker that has just left
            found += one.memory_full_info().pss
    return found


@contextmanager
def switching(tier: str, engine: str, sources: tuple[Path, Path]) -> Iterator[Switching]:
    """A cluster whose node has either model's weights there, and runs one of them at a time."""
    with (
        tempfile.TemporaryDirectory(prefix="sllm-bench-", dir=sources[0].parent) as name,
        local_cluster(
            Path(name), dram_bytes=POOLS[tier], kv_bytes=KV_BYTES, engines=engine
        ) as cluster,
    ):
        cluster.wait_for_engines(1)
        first, second = (
            Deployed(cluster, engine, source, VOCABULARY, prefix=source.name) for source in sources
        )
        found = Switching(cluster, (first, second))
        found.prepare()
        yield found


def main(
    switches: Annotated[int, typer.Option(min=2 * EDGE, help="For each tier.")] = 100,
    engine: Annotated[str, typer.Option(help="What models run on.")] = DEFAULT_ENGINE,
    json: Annotated[Path | None, typer.Option(help="Write the main figures here.")] = None,
) -> None:
    """Measures one tier after the other; Ctrl-C goes on with the next, or ends it."""
    figures: dict[str, float] = {}
    rows = []
    with tempfile.TemporaryDirectory(prefix="sllm-bench-") as name:
        a, b = (
            make_model(SHAPE, Path(name) / letter, seed=seed) for seed, letter in enumerate("ab")
        )
        for tier in POOLS:
            with switching(tier, engine, (a, b)) as found, suppress(KeyboardInterrupt):
                for number in range(switches):
                    found.switch(number)
            rows.append(
                [tier, str(len(found.seconds)), spread(found.seconds), f"{found.growth / MIB:.1f}"]
            )
            figures[f"switch_{tier.lower()}_seconds"] = median(found.seconds)
            figures[f"switch_{tier.lower()}_growth_bytes"] = found.growth
    columns = ["from", "switches", "first token, ms", "memory gained, MiB"]
    print_table(f"{SHAPE} on {engine}", columns, rows)
    write_figures(json, figures)


if __name__ == "__main__":
    typer.run(main)
