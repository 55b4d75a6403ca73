"""Loading a model's weights: sllm beside its peers, and beside what disk and memory can do.

    make bench-load BENCH='--rounds 5 --json FILE'

A load is done when every byte is resident in memory of the process's own. Each peer runs in a fresh
process; the node's ways run in one that lasts, whose pool was touched when it started, as on a
node. Everything is interleaved: in each round, each contender loads once, those of the node several
times, in an order drawn anew.
"""

import multiprocessing
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from bench.loading.contender import Group
from bench.loading.models import Model, make_llama, make_lora
from bench.loading.node import LIBRARY_GROUP, NODE_GROUP
from bench.loading.peers import PEERS
from bench.loading.report import figures, print_results
from bench.loading.rounds import Cache, run_rounds
from bench.loading.stall import measure_stalls
from bench.report import print_table, write_figures
from sllm.config import parse_bytes

SHARDS = 4
SHARDED_SHARE = 3
"""The sharded model is as many times smaller than the one in a file."""
TINY_BYTES = 1 << 20


def main(
    size: Annotated[str, typer.Option(help="Bytes of the model in one file.")] = "2.4GB",
    rounds: Annotated[int, typer.Option(help="Times that everything is measured.")] = 5,
    models: Annotated[str, typer.Option(help="Which ones.")] = "file,sharded,lora",
    caches: Annotated[str, typer.Option(help="States of the page cache.")] = "cold,warm",
    only: Annotated[str, typer.Option(help="Only peers whose names contain this.")] = "",
    directory: Annotated[
        Path | None, typer.Option(help="Where models are made, on the disk to measure.")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write the main figures here.")] = None,
) -> None:
    """Measures; the figures are those of the model in one file."""
    groups = [NODE_GROUP, LIBRARY_GROUP, *_peers(only)]
    states = [Cache(one) for one in caches.split(",")]
    for name in models.split(","):
        with tempfile.TemporaryDirectory(prefix="sllm-bench-", dir=directory) as scratch:
            tiny, model = _make(name, Path(scratch), parse_bytes(size))
            results = run_rounds(model, tiny, groups, states, rounds)
            print_results(results, states, rounds)
            if name == "file":
                stalls = measure_stalls(model)
                _print_stalls(stalls)
                longest = max(stalls.values())
                _print_figures(figures(results) | {"loop_stall_seconds": longest}, json)


def _print_stalls(stalls: dict[str, float]) -> None:
    rows = [[kind, f"{seconds * 1e3:.1f}"] for kind, seconds in stalls.items()]
    print_table("The agent's event loop while it loads", ["load", "longest stall, ms"], rows)


def _print_figures(found: dict[str, float], path: Path | None) -> None:
    rows = [[figure, f"{value:.4f}"] for figure, value in found.items()]
    print_table("Figures, one file", ["figure", "value"], rows)
    write_figures(path, found)


def _peers(only: str) -> list[Group]:
    return [group for group in PEERS if any(only in name for name in group.names)]


def _make(name: str, scratch: Path, size: int) -> tuple[Model, Model]:
    """A tiny model to warm up with, and the one to measure."""
    tiny = make_llama(scratch, "tiny", TINY_BYTES, shards=1)
    if name == "lora":
        return tiny, make_lora(scratch, name)
    if name == "sharded":
        return tiny, make_llama(scratch, name, size // SHARDED_SHARE, SHARDS)
    return tiny, make_llama(scratch, "one file", size, shards=1)


if __name__ == "__main__":
    multiprocessing.set_start_method("forkserver")
    typer.run(main)
