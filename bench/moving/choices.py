"""The choice between tokens and pages, held against what both ways take.

    PYTHONPATH=examples python -m bench.moving.choices --json FILE

Two nodes keep pages, and a generation moves from one to the other: by its tokens, by its pages, and
as the destination chooses; each time of a prompt that nobody has sent. What counts is the time
until the destination has the KV cache of all that it was sent, as it tells (`CacheMove.took`). The
loopback over which the nodes talk has a bounded rate: all of it runs in a network namespace of its
own, for which it takes root, unshare and tc. Before a rate is measured, both nodes have had a few
moves on it, from which they know the link.

A choice is right if the chosen way was not slower than the other one by more than TIE, by the
medians of what each has taken when it was asked for.
"""

import os
import random
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Annotated, Final

import typer
from make_models import make_model

import sllm
from bench.local_cluster import GIB, MIB, local_cluster
from bench.report import print_table, spread, write_figures

NAME: Final = "moving"
WAYS: Final = ("TOKENS", "PAGES")
TIE: Final = 0.05
BEFORE: Final = 4
"""Tokens that are generated before it moves."""
MOST: Final = 200
WARMING: Final = 6
"""Moves at a new rate that nothing is learned of here: the nodes learn of them."""
IDS: Final = range(300, 900)
READY_SECONDS: Final = 300.0
_INSIDE: Final = "SLLM_BENCH_INSIDE"
"""Set where the loopback is the benchmark's own."""


@dataclass(slots=True)
class Cell:
    """What was seen at one rate, of one length. Seconds."""

    took: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """By way, when that was asked for."""
    chosen: list[sllm.CacheMove] = field(default_factory=list)
    size_bytes: int = 0
    """Of the pages that came."""

    @property
    def tokens(self) -> float:
        """What computing all takes."""
        return median(self.took["TOKENS"])

    @property
    def pages(self) -> float:
        """What it takes with pages."""
        return median(self.took["PAGES"])

    @property
    def right(self) -> list[bool]:
        """Of each choice, whether it was."""
        times = {"TOKENS": self.tokens, "PAGES": self.pages}
        best = min(times.values())
        return [times[one.way] <= best * (1 + TIE) for one in self.chosen]


Cells = dict[tuple[int, float], Cell]
"""By length in tokens, and megabits per second."""


class Bench:
    """A deployment with an instance on each of two nodes."""

    def __init__(self, client: sllm.Client) -> None:
        self._client = client
        self._random = random.Random(3)

    def move(self, length: int, way: str | None) -> sllm.CacheMove:
        """Moves a generation after a prompt of so many tokens; how its cache has come."""
        prompt = self._random.choices(IDS, k=length)
        with self._client.generate(
            NAME, prompt_token_ids=prompt, max_tokens=MOST, temperature=0.0, ignore_eos=True
        ) as stream:
            seen = 0
            for event in stream:
                seen += len(event.token_ids) if isinstance(event, sllm.Tokens) else 0
                if seen >= BEFORE:
                    break
            migration = self._client.migrate(request_id=stream.request_id, way=way)
            stream.cancel()
        (one,) = migration.requests
        assert one.cache, f"it has not moved: {one}"
        return one.cache

    def measure(self, cell: Cell, length: int) -> None:
        """One move of each kind."""
        for way in WAYS:
            cache = self.move(length, way)
            assert cache.way == way, cache.why
            cell.took[way].append(cache.took)
            cell.size_bytes = cache.page_bytes or cell.size_bytes
        cell.chosen.append(self.move(length, None))


def limit(megabits: float) -> None:
    """Bounds what crosses the loopback."""
    shape = f"tbf rate {megabits}mbit burst 256kb latency 400ms"
    subprocess.run(f"tc qdisc replace dev lo root {shape}".split(), check=True, timeout=30)


def run(
    source: Path, scratch: Path, lengths: Sequence[int], rates: Sequence[float], rounds: int
) -> Cells:
    """All cells, rate by rate."""
    cells: Cells = {}
    options = ("--kv-cache-dram", str(GIB // 2))
    with local_cluster(
        scratch, dram_bytes=3 * GIB, kv_bytes=512 * MIB, nodes=2, options=options
    ) as cluster:
        cluster.wait_for_engines(2)
        cluster.client.deploy(
            NAME,
            source,
            engine="transformers",
            min_replicas=2,
            max_replicas=2,
            keep_alive=3600.0,
        )
        _until_ready(cluster.client)
        bench = Bench(cluster.client)
        for rate in rates:
            limit(rate)
            for number in range(WARMING):
                bench.move(lengths[number % len(lengths)], WAYS[number % 2])
            for length in lengths:
                cell = cells[length, rate] = Cell()
                for _ in range(rounds):
                    bench.measure(cell, length)
                times = f"tokens {cell.tokens:.2f} s, pages {cell.pages:.2f} s"
                chosen = ", ".join(f"{one.way} ({_expected(one)})" for one in cell.chosen)
                print(f"{length} tokens at {rate:g} Mbit/s: {times}; chosen {chosen}", flush=True)
    return cells


def _expected(cache: sllm.CacheMove) -> str:
    known = (cache.by_tokens, cache.by_pages)
    return " / ".join("?" if one is None else f"{one:.2f}" for one in known)


def _until_ready(client: sllm.Client) -> None:
    until = time.monotonic() + READY_SECONDS
    while sum(one.state == "READY" for one in client.instances(NAME)) < 2:
        if time.monotonic() > until:
            raise TimeoutError("the instances did not get ready")
        time.sleep(0.2)


def crossover(cells: Cells, length: int) -> float:
    """Megabits per second at which both ways take as long.

    What pages take beside their bytes is seen at the fastest rate.
    """
    mine = {rate: cell for (tokens, rate), cell in cells.items() if tokens == length}
    fastest = max(mine)
    megabits = mine[fastest].size_bytes * 8 / 1e6
    beside = max(0.0, mine[fastest].pages - megabits / fastest)
    computing = median([cell.tokens for cell in mine.values()])
    return megabits / max(computing - beside, 1e-9)


def figures(cells: Cells) -> dict[str, float]:
    """The main figures."""
    right = [one for cell in cells.values() for one in cell.right]
    lengths = sorted({length for length, _ in cells})
    return {
        "choice_right_ratio": sum(right) / len(right),
        **{f"crossover_megabits_{one}": crossover(cells, one) for one in lengths},
    }


def show(cells: Cells) -> None:
    """Prints a table."""
    rows = [
        (
            str(length),
            f"{rate:g}",
            f"{cell.size_bytes / MIB:.1f}",
            spread(cell.took["TOKENS"]),
            spread(cell.took["PAGES"]),
            ", ".join(str(one.way) for one in cell.chosen),
            f"{sum(cell.right)} of {len(cell.right)}",
        )
        for (length, rate), cell in cells.items()
    ]
    columns = ("tokens", "Mbit/s", "pages, MiB", "by tokens, ms", "by pages, ms", "chosen", "right")
    print_table("moves by tokens and by pages", columns, rows)
    found = [(name, f"{value:.3f}") for name, value in figures(cells).items()]
    print_table("figures", ("figure", "value"), found)


def main(
    shape: Annotated[str, typer.Option(help="Of the model.")] = "qwen2-0.5b",
    lengths: Annotated[str, typer.Option(help="Tokens of prompts.")] = "128,512,1024",
    megabits: Annotated[str, typer.Option(help="Rates of the link.")] = "1000,100,20,4",
    rounds: Annotated[int, typer.Option(help="Choices in each cell.")] = 3,
    json: Annotated[Path | None, typer.Option(help="Write the main figures here.")] = None,
) -> None:
    """Measures, and prints a table."""
    if _INSIDE not in os.environ:
        inside = ["unshare", "--net", sys.executable, "-m", "bench.moving.choices", *sys.argv[1:]]
        raise typer.Exit(subprocess.run(inside, env=os.environ | {_INSIDE: "1"}).returncode)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True, timeout=30)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        source = make_model(shape, scratch / "model", dtype="float32")
        counts = [int(one) for one in lengths.split(",")]
        cells = run(source, scratch, counts, [float(one) for one in megabits.split(",")], rounds)
    show(cells)
    write_figures(json, figures(cells))


if __name__ == "__main__":
    typer.run(main)
