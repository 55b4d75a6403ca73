"""The pause that a caller sees when its generation moves, beside stopping and computing anew.

    PYTHONPATH=examples python -m bench.migration --json FILE

Two nodes with an instance each of one model; on a machine with several cores each node has half of
them, as two machines would. Requests of equal length are generated together, once moved in the
midst and once undisturbed; the pause is the longest gap between the tokens of a caller. What
stopping first and computing the whole cache then would take is the time to the first token of a
request as long that nobody has seen before.
"""

import asyncio
import json as json_lib
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import psutil
import typer
from make_models import make_model

import sllm
from bench.local_cluster import GIB, LocalCluster, local_cluster
from bench.report import print_table, spread, write_figures

EXAMPLES = Path(__file__).parent.parent / "examples"
BEFORE, AFTER = 8, 12
"""Tokens that are generated before the move is asked for, and after it."""
MOST = 1024
"""Tokens that are generated at most: the move takes place while they are."""
IDS = range(300, 900)
"""Token ids of prompts: in every vocabulary here, and none of them special."""


@dataclass(slots=True)
class Case:
    """What was seen of requests of one length that moved together. Seconds."""

    length: int
    count: int
    pauses: list[float] = field(default_factory=list)
    """Longest gap between tokens, of requests that moved."""
    undisturbed: list[float] = field(default_factory=list)
    """The same of requests that did not."""
    steps: list[float] = field(default_factory=list)
    """Median gap between tokens, of those that did not."""
    cutovers: list[float] = field(default_factory=list)
    rounds: list[int] = field(default_factory=list)
    recomputed: list[float] = field(default_factory=list)
    """Time to the first token when the whole cache has to be computed first."""
    lost: int = 0
    twice: int = 0


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


@dataclass(frozen=True, slots=True)
class Timed:
    """What was generated, and how long one waited for each token after the first."""

    token_ids: tuple[int, ...]
    gaps: tuple[float, ...]


class Bench:
    """One model on two nodes."""

    def __init__(self, client: sllm.AsyncClient, name: str, seed: int) -> None:
        self._client = client
        self._name = name
        self._random = random.Random(seed)

    async def measure(self, case: Case) -> None:
        """Generates and moves; then generates as much undisturbed, with the same prompts."""
        prompts = [self._prompt(case.length - BEFORE) for _ in range(case.count)]
        moved = await self._moved(prompts, case)
        streams = [
            self._ask(prompt, len(one.token_ids))
            for prompt, one in zip(prompts, moved, strict=True)
        ]
        undisturbed = await asyncio.gather(*(self._read(stream) for stream in streams))
        for still, other in zip(undisturbed, moved, strict=True):
            case.undisturbed.append(max(still.gaps))
            case.steps.append(statistics.median(still.gaps))
            case.pauses.append(max(other.gaps))
            _compare(case, still.token_ids, other.token_ids)
        case.recomputed.append(await self._first_token(self._prompt(case.length)))

    async def _moved(self, prompts: Sequence[list[int]], case: Case) -> list[Timed]:
        streams = [self._ask(one, MOST) for one in prompts]
        begun = [asyncio.Event() for _ in streams]
        reads = [
            asyncio.create_task(self._read(stream, event))
            for stream, event in zip(streams, begun, strict=True)
        ]
        await asyncio.gather(*(event.wait() for event in begun))
        moves = [self._client.migrate(request_id=one.request_id) for one in streams]
        for move in await asyncio.gather(*moves):
            (request,) = move.requests
            case.cutovers.append(request.cutover)
            case.rounds.append(request.rounds)
        return await asyncio.gather(*reads)

    def _ask(self, prompt: list[int], max_tokens: int) -> sllm.AsyncStream:
        return self._client.generate(
            self._name,
            prompt_token_ids=prompt,
            max_tokens=max_tokens,
            temperature=0.0,
            ignore_eos=True,
        )

    async def _read(self, stream: sllm.AsyncStream, begun: asyncio.Event | None = None) -> Timed:
        """Reads to the end, or, of one that is to move, to some tokens after its move."""
        times: list[float] = []
        token_ids: list[int] = []
        left = AFTER
        moved = False
        async for event in stream:
            moved = moved or isinstance(event, sllm.Migrated)
            if isinstance(event, sllm.Tokens):
                times.append(time.monotonic())
                token_ids += event.token_ids
                left -= moved
                if begun and len(token_ids) >= BEFORE:
                    begun.set()
            if not left:
                break
        await stream.cancel()
        gaps = tuple(later - earlier for earlier, later in pairwise(times))
        return Timed(tuple(token_ids), gaps)

    async def _first_token(self, prompt: list[int]) -> float:
        result = await self._client.complete(
            self._name, prompt_token_ids=prompt, max_tokens=1, temperature=0.0
        )
        return result.receipt.time_to_first_token

    def _prompt(self, length: int) -> list[int]:
        return self._random.choices(IDS, k=length)


def _compare(case: Case, expected: Sequence[int], found: Sequence[int]) -> None:
    """Counts tokens that are missing, or that should not be there."""
    same = sum(a == b for a, b in zip(expected, found, strict=False))
    case.lost += len(expected) - same
    case.twice += max(0, len(found) - len(expected))


def _share_cores(cluster: LocalCluster) -> None:
    """Gives each of the two nodes half of the cores, with all that it starts."""
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
            dtype="float32",
            min_replicas=2,
            max_replicas=2,
            kv_cache_tokens=(max(plan.lengths) + MOST) * max(plan.counts),
        )
        await _until_ready(client, 2)
        bench = Bench(client, "moving", seed=1)
        await bench.measure(
            Case(plan.lengths[0], 1)
        )  # what is done for the first time takes longer
        cases = [Case(length, count) for length in plan.lengths for count in plan.counts]
        for _ in range(plan.rounds):
            for case in cases:
                await bench.measure(case)
        return cases, await client.deployment("moving")


async def _until_ready(client: sllm.AsyncClient, count: int) -> None:
    while True:
        if sum(one.state == "READY" for one in await client.instances()) >= count:
            return
        await asyncio.sleep(0.1)


def _print(title: str, cases: Sequence[Case], kv_bytes: int) -> None:
    rows = [
        (
            f"{case.length} x {case.count}",
            spread(case.steps),
            spread(case.undisturbed),
            spread(case.pauses),
            spread(case.cutovers),
            f"{statistics.mean(case.rounds):.1f}",
            spread(case.recomputed),
            f"{case.length * kv_bytes / 2**20:.1f} MiB",
        )
        for case in cases
    ]
    columns = ("tokens x requests", "step", "longest gap", "moved: gap", "of it cutover")
    print_table(f"{title}, ms", (*columns, "rounds", "anew", "KV cache"), rows)


def _p99(cases: Sequence[Case]) -> float:
    pauses = sorted(pause for case in cases for pause in case.pauses)
    return pauses[min(len(pauses) - 1, int(0.99 * len(pauses)))]


def main(
    rounds: Annotated[int, typer.Option(help="Times that every case is measured.")] = 5,
    half_b: Annotated[bool, typer.Option(help="Measure the 0.5B shape as well.")] = True,
    json: Annotated[Path | None, typer.Option(help="Write the main figures here.")] = None,
) -> None:
    """Measures the demo model and one of the 0.5B shape."""
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        demo = _stretched(EXAMPLES / "tiny-llama", directory / "demo")
        models = [Plan("demo", demo, (64, 256, 1024, 2048), (1, 4, 16), rounds)]
        if half_b:
            source = make_model("qwen2-0.5b", directory / "half-b")
            models.append(Plan("0.5B", source, (64, 256, 512), (1, 4), max(1, rounds // 4)))
        figures: dict[str, float] = {"tokens_lost": 0, "tokens_twice": 0}
        for plan in models:
            where = directory / f"cluster-{plan.name}"
            where.mkdir()
            with local_cluster(where, dram_bytes=3 * GIB, kv_bytes=2 * GIB, nodes=2) as cluster:
                _share_cores(cluster)
                cases, deployed = asyncio.run(_run(cluster.address, plan))
            _print(plan.name, cases, deployed.model.kv_bytes_per_token)
            figures["tokens_lost"] += sum(case.lost for case in cases)
            figures["tokens_twice"] += sum(case.twice for case in cases)
            key = "pause_p99_seconds" if plan.name == "demo" else "pause_p99_seconds_half_b"
            figures[key] = _p99(cases)
        write_figures(json, figures)


if __name__ == "__main__":
    typer.run(main)
