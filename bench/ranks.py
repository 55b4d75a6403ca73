"""What each process of a model that several run on vLLM reads of its weights, and takes to attach.

    make bench-ranks BENCH='--shape opt-1.3b --json FILE'

Workers of 1, 2 and 4 processes over one checkpoint in one pool, in turn in each round.
"""

import asyncio
import os
import signal
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Annotated, Final

import typer
from make_models import make_model

from bench.local_cluster import GIB, MIB
from bench.report import print_table, spread, write_figures
from sllm.durations import to_seconds
from sllm.node.instances.zygote_client import Zygote
from sllm.node.tiers.pool import Pool
from sllm.node.worker.backends.names import VLLM
from tests.node.worker.clients import fork
from tests.node.worker.staging import Staged, stage

COUNTS: Final = (1, 2, 4)
MARGIN: Final = 1.1
"""Times its share of the weights, which a process may read."""


@dataclass(slots=True)
class Way:
    """One number of processes; an entry for every round."""

    read: list[float] = field(default_factory=list)
    """Of the weights' bytes, what the process has read that read most."""
    attach: list[float] = field(default_factory=list)
    """Seconds until all of them have what they read, and an engine over it."""


async def measure(staged: Staged, pool: Pool, scratch: Path, rounds: int) -> dict[int, Way]:
    """By the number of processes; the first round is not counted."""
    ways = {count: Way() for count in COUNTS}
    zygote = Zygote(VLLM)
    zygote.start(pool.fd)
    try:
        for number in range(rounds + 1):
            for count, way in ways.items():
                found = await _attach(zygote, staged, scratch / f"{number}-{count}.sock", count)
                if number:
                    way.read.append(found[0])
                    way.attach.append(found[1])
    finally:
        await zygote.close()
    return ways


async def _attach(zygote: Zygote, staged: Staged, socket: Path, ranks: int) -> tuple[float, float]:
    """The part that was read by whoever read most, and seconds."""
    worker = await fork(zygote, socket, ranks=ranks)
    try:
        attached = await worker.bring_up(staged, engine=VLLM, tensor_parallel=ranks)
    finally:
        await worker.close()
        os.kill(worker.pid, signal.SIGKILL)  # the others end with it
        await worker.forked.exited
    seconds = to_seconds(attached.attach) + to_seconds(attached.engine_init)
    return max(attached.rank_read_bytes) / staged.size_bytes, seconds


def figures(ways: Mapping[int, Way]) -> dict[str, float]:
    """The main ones, of several processes."""
    found = {}
    for count in [one for one in ways if one > 1]:
        found[f"bytes_read_per_rank_ratio_{count}"] = max(ways[count].read)
        found[f"attach_{count}_ranks_seconds"] = median(ways[count].attach)
    return found


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Times that everything is measured.")] = 3,
    shape: Annotated[str, typer.Option(help="Of the model; 4 must divide its heads.")] = "opt-1.3b",
    dtype: Annotated[str, typer.Option(help="Of its weights.")] = "bfloat16",
    json: Annotated[Path | None, typer.Option(help="Write the main figures here.")] = None,
) -> None:
    """Measures, and prints a table."""
    with tempfile.TemporaryDirectory(prefix="sllm-bench-") as name:
        scratch = Path(name)
        source = make_model(shape, scratch / "model", dtype=dtype)
        size = sum(one.stat().st_size for one in source.glob("*.safetensors"))
        pool = Pool(size + GIB, 16 * MIB)
        staged = stage(source, scratch / "staged", pool)
        ways = asyncio.run(measure(staged, pool, scratch, rounds))
    rows = [
        [str(count), f"{max(way.read):.3f}", f"{MARGIN / count:.3f}", spread(way.attach)]
        for count, way in ways.items()
    ]
    columns = ["processes", "read by each, of the weights", "at most", "attach, ms"]
    print_table(f"{shape} in {dtype}: {staged.size_bytes / 1e9:.2f} GB", columns, rows)
    write_figures(json, figures(ways))


if __name__ == "__main__":
    typer.run(main)
