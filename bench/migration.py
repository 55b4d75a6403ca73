"""The pause that a caller sees when its generation moves, beside stopping and computing anew.

    PYTHONPATH=examples python -m bench.migration --json FILE

Two nodes and one instance of a model, which moves from one to the other with all that it runs; on a
machine with several cores each node has half of them, as two machines would. Requests of equal
length are generated together, once moved in the midst and once undisturbed. The pause is the
longest gap between the tokens of a caller from the asking for the move on. What stopping first and
computing the whole cache then would take is the time to the first token of as many requests as
long that nobody has seen before.

A pause may last 1.5 decode steps and what computing the last gap takes: what the destination has to
compute while the generation stands still. Both are measured in the same minute, on an engine that
does nothing else.
"""

import asyncio
import json as json_lib
import shutil
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import psutil
import typer
from make_models import make_model

import sllm
from bench.local_cluster import DEFAULT_ENGINE, GIB, LocalCluster, local_cluster
from bench.moving.cases import MOST, Bench, Case, percentile_99
from bench.report import print_table, spread, write_figures

EXAMPLES = Path(__file__).parent.parent / "examples"
READY_SECONDS = 300.0
NODES = 2


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured of one model."""

    name: str
    source: Path
    lengths: tuple[int, ...]
    """Tokens of prompt and generation."""
    counts: tuple[int, ...]
    """Requests that move together."""
    rounds: int
    engine: str


def _share_cores(cluster: LocalCluster) -> None:
    """Gives each of the two nodes half of the cores, with all that it starts from now on."""
    cores = sorted(psutil.Process().cpu_affinity() or [])
    half = len(cores) // 2
    for name, share in (("node-1", cores[:half]), ("node-2", cores[half:])):
        node = cluster.server(name)
        for process in (node, *node.children(recursive=True)) if half else ():
            process.cpu_affinity(share)


def _stretched(model: Path, copy: Path) -> Path:
    """The demo's model with more positions: its text gets worse, and takes as long."""
    shutil.copytree(model, copy)
    config = copy / "config.json"
    positions = {"max_position_embeddings": 4096}
    config.write_text(json_lib.dumps({**json_lib.loads(config.read_text()), **positions}))
    return copy


async def _run(address: str, plan: Plan) -> tuple[list[Case], sllm.Deployment]:
    async with sllm.AsyncClient(address) as client:
        await client.deploy(
            "moving",
            f"file://{plan.source}",
            engine=plan.engine,
            min_replicas=1,
            kv_cache_tokens=(max(plan.lengths) + MOST) * max(plan.counts),
        )
        await _until_ready(client)
        nodes = [one.node_id for one in await client.nodes()]
        bench = Bench(client, "moving", nodes)
        for _ in nodes:  # what is done for the first time takes longer
            await bench.measure(Case(plan.lengths[0], 1))
        cases = [Case(length, count) for length in plan.lengths for count in plan.counts]
        for _ in range(plan.rounds):
            for case in cases:
                await bench.measure(case)
                longest = 1000 * case.worst_pause
                typer.echo(f"{plan.name} {_name(case)}: {longest:.0f} ms", err=True)
        return cases, await client.deployment("moving")


async def _until_ready(client: sllm.AsyncClient) -> None:
    async with asyncio.timeout(READY_SECONDS):
        while not any(  # noqa: ASYNC110 - it is elsewhere
            one.state == "READY" for one in await client.instances()
        ):
            await asyncio.sleep(0.1)


def _print(title: str, cases: Sequence[Case], kv_bytes: int) -> None:
    rows = [
        (
            _name(case),
            spread(case.pauses),
            spread(case.undisturbed),
            spread(case.cutovers),
            f"{statistics.mean(case.rounds):.1f}",
            spread(case.anew),
            f"{case.length * case.count * kv_bytes / 2**20:.1f} MiB",
        )
        for case in cases
    ]
    columns = ("tokens x requests", "moved: gap", "undisturbed: gap", "cutover", "rounds")
    print_table(f"{title}, ms", (*columns, "anew", "KV cache"), rows)


def _print_bounds(title: str, cases: Sequence[Case]) -> None:
    rows = [
        (
            _name(case),
            f"{1000 * case.worst_pause:.1f}",
            f"{1000 * case.bound:.1f}",
            f"{case.worst_pause / case.bound:.2f}",
            spread(case.steps),
            f"{statistics.median(case.gaps):g}",
            spread(case.gap_recomputes),
            spread([actual / estimate for estimate, actual in case.estimates], ""),
        )
        for case in cases
    ]
    columns = ("tokens x requests", "pause P99", "1.5 steps + gap", "ratio", "step", "gap, tokens")
    print_table(f"{title}, ms", (*columns, "gap computed", "took / expected"), rows)


def _name(case: Case) -> str:
    ended = f" ({case.ended} ended before)" if case.ended else ""
    return f"{case.length} x {case.count}{ended}"


def _figures(key: str, cases: Sequence[Case]) -> dict[str, float]:
    return {
        f"pause_p99_seconds{key}": percentile_99([one for case in cases for one in case.pauses]),
        f"pause_over_bound_worst{key}": max(case.worst_pause / case.bound for case in cases),
    }


def main(
    rounds: Annotated[int, typer.Option(help="Times that every case is measured.")] = 1,
    demo: Annotated[bool, typer.Option(help="Measure the demo's model.")] = True,
    half_b: Annotated[bool, typer.Option(help="Measure the 0.5B shape as well.")] = True,
    engine: Annotated[str, typer.Option(help="vllm or transformers.")] = DEFAULT_ENGINE,
    json: Annotated[Path | None, typer.Option(help="Write the main figures here.")] = None,
) -> None:
    """Measures the demo model and one of the 0.5B shape."""
    figures: dict[str, float] = {"tokens_lost": 0, "tokens_twice": 0}
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        plans: dict[str, Plan] = {}
        if demo:
            source = _stretched(EXAMPLES / "tiny-llama", directory / "demo")
            plans[""] = Plan("demo", source, (64, 256, 1024, 2048), (1, 4, 16), rounds, engine)
        if half_b:
            source = make_model("qwen2-0.5b", directory / "half-b", dtype="float32")
            half = max(1, rounds // 2)
            plans["_half_b"] = Plan("0.5B", source, (64, 256, 512), (1, 4), half, engine)
        for key, plan in plans.items():
            where = directory / f"cluster-{plan.name}"
            where.mkdir()
            with local_cluster(
                where, dram_bytes=3 * GIB, kv_bytes=2 * GIB, nodes=NODES, engines=engine
            ) as cluster:
                cluster.wait_for_engines(NODES)
                _share_cores(cluster)
                cases, deployed = asyncio.run(_run(cluster.address, plan))
            _print(f"{plan.name} on {engine}", cases, deployed.model.kv_bytes_per_token)
            _print_bounds(plan.name, cases)
            figures["tokens_lost"] += sum(case.lost for case in cases)
            figures["tokens_twice"] += sum(case.twice for case in cases)
            figures |= _figures(key, cases)
        print_table("Figures", ("figure", "value"), [(k, f"{v:.4f}") for k, v in figures.items()])
        write_figures(json, figures)


if __name__ == "__main__":
    typer.run(main)
