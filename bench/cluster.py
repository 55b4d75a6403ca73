"""A real cluster at small scale: four nodes on this machine, twelve models, a bursty trace.

    make bench-cluster BENCH='--minutes 3 --json FILE'
    make bench-cluster BENCH='--minutes 3 --kill'
    make bench-cluster BENCH='--minutes 3 --no-migrate'

Every node's pool holds a third of the models, instances stay for a few seconds, and callers stream
through the SDK. With --kill each node in turn and the control plane are killed and come back, and
one node is stopped for longer than its lease: nothing may fail that was not on them.
"""

import asyncio
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import psutil
import typer
from make_models import make_model

import sllm
from bench.live.asking import Asked, Asking
from bench.live.killing import Blow, Killing, unexcused
from bench.live.results import (
    StartSeen,
    first_tokens,
    percentile,
    starts_of,
    unknown_estimates,
)
from bench.live.watching import Watching
from bench.local_cluster import MIB, LocalCluster, local_cluster
from bench.report import print_table, write_figures
from bench.simulation.workload import Arrival, Dataset, bursty_arrivals

NODES = 4
MODELS = 12
SHAPE = "small-llama"
MODEL_BYTES = 64 * MIB
"""Of one, in whole chunks."""
POOL_BYTES = MODELS // 3 * MODEL_BYTES
KV_BYTES = 256 * MIB
KV_TOKENS = 1024
CONCURRENCY = 16
ARRIVAL_CV = 4.0
"""Bursts of some ten requests: a trace of minutes has many of them."""
KEEP_ALIVE = 3.0
"""Seconds: most bursts find their model cold."""
WORST_SHOWN = 10
PARTS = {
    "QUEUED": "queue",
    "PLACED": "place",
    "asking": "ask",
    "IMPORT": "import",
    "READ_SSD": "read",
    "WORKER_START": "fork",
    "PREPARE": "prep.",
    "handing over": "hand",
    "ATTACH": "attach",
    "ENGINE_INIT": "engine",
    "telling": "tell",
    "PREFILL": "prefill",
}
"""In their order, with short headings; see `sllm.PhaseKind` and `bench.live.results.BETWEEN`."""
LENGTHS = Dataset("short", prompt_tokens=16.0, output_tokens=24.0, most_tokens=128)


@dataclass(frozen=True, slots=True)
class Run:
    """What a trace came to."""

    asked: Sequence[Asked]
    blows: Sequence[Blow]
    watching: Watching
    processors_busy: float
    """Share of the machine's processors' time while it lasted."""

    @property
    def failures(self) -> list[Asked]:
        """Requests that should not have failed."""
        return unexcused(self.asked, self.blows)


def make_models(directory: Path) -> dict[str, Path]:
    """Models of one shape, each with weights of its own."""
    names = [f"model-{number:02d}" for number in range(MODELS)]
    return {name: make_model(SHAPE, directory / name, seed=seed) for seed, name in enumerate(names)}


def make_arrivals(names: Sequence[str], seconds: float, rate: float, seed: int) -> list[Arrival]:
    """A bursty trace of some length."""
    requests = max(1, round(seconds * rate))
    return bursty_arrivals(names, LENGTHS, rate, requests, seed, ARRIVAL_CV)


async def run_trace(
    cluster: LocalCluster, models: dict[str, Path], arrivals: Sequence[Arrival], kill: bool
) -> Run:
    """Deploys the models, then sends the trace."""
    async with sllm.AsyncClient(cluster.address) as client:
        for name, source in models.items():
            await client.deploy(
                name,
                source,
                keep_alive=KEEP_ALIVE,
                max_replicas=2,
                kv_cache_tokens=KV_TOKENS,
                max_concurrency=CONCURRENCY,
            )
        asking, watching = Asking(client, arrivals), Watching(client)
        killing = Killing(cluster, watching, asking.now, NODES)
        watch = asyncio.create_task(watching.run())
        psutil.cpu_percent()  # from now on
        sending = asyncio.create_task(asking.run())
        if kill:
            every = arrivals[-1].at / len(killing.plan())
            await killing.run(client, every)
        await sending
        busy = psutil.cpu_percent() / 100
        watch.cancel()
        with suppress(asyncio.CancelledError):
            await watch
    return Run(asking.asked, killing.blows, watching, busy)


def _print_first_tokens(asked: Sequence[Asked]) -> None:
    ways = first_tokens(asked)
    ways["all"] = [seconds for values in ways.values() for seconds in values]
    rows = [
        [name, str(len(values)), *(f"{1000 * percentile(values, p):.0f}" for p in (50, 95, 99))]
        for name, values in ways.items()
    ]
    print_table("Time to first token, ms", ["way", "requests", "P50", "P95", "P99"], rows)


def _print_starts(starts: Sequence[StartSeen]) -> None:
    tiers = sorted({one.from_tier for one in starts})
    rows = []
    for tier in [*tiers, "all"]:
        some = [one for one in starts if tier in (one.from_tier, "all")]
        medians = [
            percentile([getattr(one, of) for one in some], 50) for of in ("estimate", "actual")
        ]
        ratios = [percentile([one.ratio for one in some], p) for p in (50, 95)]
        milliseconds = [f"{1000 * value:.0f}" for value in medians]
        rows.append([tier, str(len(some)), *milliseconds, *(f"{value:.2f}" for value in ratios)])
    columns = ["from", "starts", "estimate, P50 ms", "actual, P50 ms", "off, P50", "off, P95"]
    print_table("Starts: off is the error over what is allowed (1: just right)", columns, rows)


def _print_phases(starts: Sequence[StartSeen]) -> None:
    """Where the time of starts went: the median, and those whose estimates were worst."""
    kinds = [kind for kind in PARTS if any(kind in one.phases for one in starts)]
    worst = sorted(starts, key=lambda one: one.ratio, reverse=True)[:WORST_SHOWN]
    median = [f"{1000 * percentile([x.phases.get(k, 0.0) for x in starts], 50):.0f}" for k in kinds]
    rows = [["median", "", "", *median]]
    for one in worst:
        phases = [f"{1000 * one.phases.get(kind, 0.0):.0f}" for kind in kinds]
        rows.append(
            [one.from_tier, f"{1000 * one.estimate:.0f}", f"{1000 * one.actual:.0f}", *phases]
        )
    columns = ["from", "est.", "actual", *(PARTS[kind] for kind in kinds)]
    print_table(f"Starts by phase, ms; the {len(worst)} farthest off", columns, rows)


def _print_blows(run: Run) -> None:
    rows = []
    for blow in run.blows:
        lost = [one for one in run.asked if one.error and blow.may_have_lost(one)]
        back = "never" if blow.back is None else f"{blow.back - blow.at:.1f}"
        kept = f"{blow.workers - len(blow.restarted)} of {blow.workers}"
        rows.append([blow.server, blow.kind, f"{blow.at:.0f}", back, str(len(lost)), kept])
    columns = ["server", "signal", "at, s", "all back after, s", "requests lost", "workers kept"]
    print_table("What was killed and stopped", columns, rows)


def _print_summary(run: Run) -> None:
    errors = Counter(one.error for one in run.asked if one.error)
    evictions = sum(run.watching.evictions.values())
    moved = sum(len(one.node_ids) > 1 for one in run.asked)
    rows = [
        ["requests", str(len(run.asked))],
        ["ended in an error", ", ".join(f"{n} {why}" for why, n in errors.items()) or "0"],
        ["of these not because of a kill", str(len(run.failures))],
        ["went on elsewhere", str(moved)],
        ["most instances at a time", str(run.watching.most_instances)],
        ["evictions from pools", str(evictions)],
        ["processors busy", f"{run.processors_busy:.0%}"],
        ["starts without an estimate", str(unknown_estimates(run.asked))],
    ]
    print_table("The trace", ["what", "count"], rows)


def figures(run: Run) -> dict[str, float]:
    """The main figures."""
    seconds = [one.time_to_first_token for one in run.asked]
    known = [one for one in seconds if one is not None]
    unhealed = sum(blow.back is None or bool(blow.restarted) for blow in run.blows)
    return {
        "failures": len(run.failures) + unhealed,
        "ttft_p50_seconds": percentile(known, 50),
        "ttft_p99_seconds": percentile(known, 99),
        "estimate_error_p95_ratio": percentile([one.ratio for one in starts_of(run.asked)], 95),
    }


def main(
    minutes: Annotated[float, typer.Option(help="Length of the trace.")] = 3.0,
    rate: Annotated[float, typer.Option(help="Requests per second over all models.")] = 1.5,
    seed: Annotated[int, typer.Option(help="Of the trace.")] = 1,
    kill: Annotated[bool, typer.Option("--kill", help="Kill and stop servers meanwhile.")] = False,
    migrate: Annotated[
        bool, typer.Option(help="Whether placement may migrate what runs, to make room.")
    ] = True,
    json: Annotated[Path | None, typer.Option(help="Write the main figures here.")] = None,
) -> None:
    """Runs the trace; ends with status 1 if anything failed that should not have."""
    with tempfile.TemporaryDirectory(prefix="sllm-bench-") as scratch:
        models = make_models(Path(scratch) / "models")
        arrivals = make_arrivals(sorted(models), 60 * minutes, rate, seed)
        directory = Path(scratch) / "cluster"
        directory.mkdir()
        with local_cluster(
            directory,
            nodes=NODES,
            dram_bytes=POOL_BYTES,
            kv_bytes=KV_BYTES,
            options=() if migrate else ("--no-migrate",),
        ) as cluster:
            run = asyncio.run(run_trace(cluster, models, arrivals, kill))
    starts = starts_of(run.asked)
    _print_first_tokens(run.asked)
    _print_starts(starts)
    _print_phases(starts)
    if kill:
        _print_blows(run)
    _print_summary(run)
    found = figures(run)
    print_table("Figures", ["figure", "value"], [[k, f"{v:.3f}"] for k, v in found.items()])
    write_figures(json, found)
    raise typer.Exit(int(found["failures"] > 0))


if __name__ == "__main__":
    typer.run(main)
