"""A mixture of experts in a part of the memory that it takes: what is kept, and what that is worth.

    python -m bench.experts --rounds 3 --json FILE

Experts are read with O_DIRECT, so that the page cache hides nothing; what the disk gives is told
beside it. The model has the shape of OLMoE-1B-7B with fewer layers, random weights and a router
whose choices are skewed, by the text and whatever the text (`bench.inference.mixture`). Requests
come one after the other, of kinds whose frequencies are skewed as well. Rounds are interleaved.

Two bounds are told beside it: what could have been there at best, had one known what comes
(`bench.inference.oracle`); and how many times as fast as with the least recently used ones gone it
could be at most, which is as fast as with all experts in memory.
"""

import mmap
import os
import queue
import random
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Final

import numpy as np
import torch
import typer

from bench.inference.mixture import KINDS, VOCABULARY, Skew, make_mixture
from bench.inference.oracle import share_there
from bench.report import print_table, spread, write_figures
from sllm import checkpoint
from sllm.checkpoint.format.experts import expert_bytes
from sllm.checkpoint.format.manifest import Manifest
from sllm.checkpoint.format.manifest_file import read_manifest
from sllm.checkpoint.reading.chunk_reader import open_file
from sllm.config import format_bytes
from sllm.node.worker.engine.interface import Capacity, EngineRequest, Step
from sllm.node.worker.engine.transformers_engine import TransformersEngine
from sllm.node.worker.experts.cache import READ_THREADS, ExpertCounts
from sllm.node.worker.experts.keeping import ByUse, Keeping, Numbers, Shares
from sllm.node.worker.experts.on_demand import OnDemand, WeightsOnDisk
from sllm.node.worker.experts.reading import PIECE_BYTES
from sllm.node.worker.model.description import load_architecture
from sllm.node.worker.model.module import build_module
from sllm.sampling import Sampling

SHARES: Final = (0.25, 0.5, 0.75)
PROMPT_TOKENS: Final = 64
CAPACITY: Final = Capacity(kv_tokens=1024, max_requests=1)
PATIENCE_SECONDS: Final = 120.0


class ByLastUse(Keeping):
    """Keeps what was used last, and notes what was used."""

    def __init__(self, counts: Sequence[int]) -> None:
        self.asked: list[Numbers] = []
        self._starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.intp)
        self._last: Shares = np.zeros(self._starts[-1])

    def used(self, layer: int, chosen: Numbers) -> None:
        """See `Keeping.used`."""
        self.asked.append(np.unique(chosen) + self._starts[layer])
        self._last[self.asked[-1]] = len(self.asked)

    def worth(self, numbers: Numbers) -> Shares:
        """See `Keeping.worth`."""
        return self._last[numbers]


POLICIES: Final[Mapping[str, tuple[Callable[[Sequence[int]], Keeping], bool]]] = {
    "last use": (ByLastUse, False),
    "use, not ahead": (ByUse, False),
    "use, and ahead": (ByUse, True),
}
"""What is kept, and whether anything is read before it is asked for."""


@dataclass(frozen=True, slots=True)
class Case:
    """One way to serve it."""

    share: float
    """Of the experts' memory."""
    policy: str

    @property
    def name(self) -> str:
        """As the table has it."""
        return "whole" if self.policy == "whole" else f"{self.share:.0%} by {self.policy}"


CASES: Final = (
    Case(1.0, "whole"),
    *(Case(share, policy) for share in SHARES for policy in POLICIES),
)


@dataclass(frozen=True, slots=True)
class Measured:
    """One run."""

    tokens_per_second: float
    there: float
    """Of the experts that steps have asked for, the share that was there."""
    token_ids: tuple[tuple[int, ...], ...]
    at_best: float | None = None
    """What could have been there, had one known what comes. None: not worked out."""


def requests(count: int, tokens: int, seed: int) -> list[EngineRequest]:
    """Prompts of a few kinds, some of which come more often."""
    chance = random.Random(seed)
    weights = [1 / (kind + 1) for kind in range(KINDS)]
    kinds = chance.choices(range(KINDS), weights, k=count)
    return [
        EngineRequest(
            f"{seed}-{number}",
            tuple(
                chance.randrange(1, VOCABULARY // KINDS) * KINDS + kind
                for _ in range(PROMPT_TOKENS)
            ),
            Sampling(temperature=1.0, seed=number),
            tokens,
        )
        for number, kind in enumerate(kinds)
    ]


def run(directory: Path, manifest: Manifest, case: Case, count: int, tokens: int) -> Measured:
    """Serves requests until what is kept has settled, and then as many to be measured."""
    _forget_cached(directory, manifest)
    if case.policy == "whole":
        module = build_module(load_architecture(directory), checkpoint.load(directory))
        return _measure(module, lambda: ExpertCounts(used=1), count, tokens)
    experts = expert_bytes(manifest.tensors)
    assert experts is not None
    budget = int(experts.total * case.share)
    on_demand = OnDemand(WeightsOnDisk(directory, manifest.partitions, manifest.tensors, budget))
    try:
        on_demand.read_resident()
        module = build_module(load_architecture(directory), on_demand.tensors())
        layers, each = module.config.num_hidden_layers, module.config.num_experts
        make, ahead = POLICIES[case.policy]
        keeping = make([each] * layers)
        on_demand.begin(module, keeping, ahead=ahead)
        found = _measure(module, lambda: on_demand.counts, count, tokens)
        return replace(found, at_best=_at_best(keeping, int(layers * each * case.share)))
    finally:
        on_demand.close()


def _at_best(keeping: Keeping, capacity: int) -> float | None:
    if not isinstance(keeping, ByLastUse):
        return None
    return share_there(keeping.asked, capacity, skipped=len(keeping.asked) // 2)


def _measure(module: Any, counts: Callable[[], ExpertCounts], count: int, tokens: int) -> Measured:
    engine = TransformersEngine(module, CAPACITY)
    steps: queue.Queue[Step] = queue.Queue()
    failures: queue.Queue[Exception] = queue.Queue()
    engine.start(steps.put, failures.put)
    try:
        _serve(engine, steps, requests(count, tokens, seed=1))
        before, began = counts(), time.monotonic()
        found = _serve(engine, steps, requests(count, tokens, seed=2))
        seconds, after = time.monotonic() - began, counts()
    finally:
        engine.stop()
    used = after.used - before.used
    there = 1 - (after.waited_for - before.waited_for) / used if used else 1.0
    return Measured(count * tokens / seconds, there, found)


def _serve(
    engine: TransformersEngine, steps: "queue.Queue[Step]", asked: Sequence[EngineRequest]
) -> tuple[tuple[int, ...], ...]:
    """One request after the other."""
    found = []
    for one in asked:
        engine.submit(one)
        taken: list[int] = []
        while len(taken) < one.max_tokens:
            taken += [token.token_id for token in steps.get(timeout=PATIENCE_SECONDS).tokens]
        found.append(tuple(taken))
    return tuple(found)


def _forget_cached(directory: Path, manifest: Manifest) -> None:
    for entry in manifest.partitions:
        fd = os.open(directory / entry.file, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def disk_rate(directory: Path, manifest: Manifest) -> float:
    """Bytes a second that a few threads read of it, as they read experts."""
    entry = manifest.partitions[0]
    offsets = range(0, entry.size - PIECE_BYTES + 1, PIECE_BYTES)[:256]
    with open_file(directory / entry.file) as file, ThreadPoolExecutor(READ_THREADS) as threads:
        _forget_cached(directory, manifest)
        began = time.monotonic()
        list(threads.map(lambda at: file.read_into(_memory(), at), offsets))
        return len(offsets) * PIECE_BYTES / (time.monotonic() - began)


def _memory() -> memoryview:
    return memoryview(mmap.mmap(-1, PIECE_BYTES))


def main(
    rounds: Annotated[int, typer.Option(help="Of all cases, in turn.")] = 3,
    layers: Annotated[int, typer.Option(help="Of the model.")] = 4,
    count: Annotated[int, typer.Option(help="Requests that are measured.")] = 8,
    tokens: Annotated[int, typer.Option(help="Of each.")] = 32,
    common: Annotated[float, typer.Option(help="Skew whatever the text.")] = 1.0,
    kinds: Annotated[float, typer.Option(help="Skew by the text.")] = 0.5,
    only: Annotated[str, typer.Option(help="Shares, such as 0.5.")] = "",
    directory: Annotated[Path | None, typer.Option(help="Keeps the model for later runs.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the main figures here.")] = None,
) -> None:
    """Measures, and prints a table."""
    torch.set_num_threads(os.cpu_count() or 1)
    cases = [
        case for case in CASES if not only or case.share in (1.0, *map(float, only.split(",")))
    ]
    with tempfile.TemporaryDirectory() as name:
        model = (directory or Path(name)) / "model"
        if not model.exists():
            make_mixture(model, layers, Skew(common, kinds), torch.bfloat16)
        manifest = read_manifest(model)
        rate = disk_rate(model, manifest)
        found: dict[str, list[Measured]] = {case.name: [] for case in cases}
        for _ in range(rounds):
            for case in cases:
                one = run(model, manifest, case, count, tokens)
                found[case.name].append(one)
                told = f"{case.name}: {one.tokens_per_second:.2f} tokens/s, {one.there:.1%} there"
                typer.echo(told, err=True)  # all of them take minutes
    whole = found["whole"]
    assert all(one.token_ids == whole[0].token_ids for runs in found.values() for one in runs)
    experts = expert_bytes(manifest.tensors)
    assert experts is not None
    title = (
        f"{format_bytes(experts.stored)} of experts, {rate / 1e9:.2f} GB/s of disk, {rounds} rounds"
    )
    print_table(
        title,
        ("memory", "tokens/s", "of whole", "there already", "at best"),
        [_row(name, runs, whole) for name, runs in found.items()],
    )
    write_figures(json, figures(found) | {"disk_bytes_per_second": rate})


def _row(name: str, runs: Sequence[Measured], whole: Sequence[Measured]) -> tuple[str, ...]:
    speeds = [one.tokens_per_second for one in runs]
    there, at_best = median(one.there for one in runs), runs[0].at_best
    told = "" if at_best is None else f"{at_best:.1%}"
    return name, spread(speeds, ""), f"{_ratio(runs, whole):.2f}", f"{there:.1%}", told


def _ratio(runs: Sequence[Measured], others: Sequence[Measured]) -> float:
    pairs = zip(runs, others, strict=True)
    return median(one.tokens_per_second / other.tokens_per_second for one, other in pairs)


def figures(found: Mapping[str, Sequence[Measured]]) -> dict[str, float]:
    """What is kept by use, and read ahead, against what was used last; and against the whole."""
    lru, _, best = POLICIES
    of: dict[str, float] = {}
    for share in (one for one in SHARES if Case(one, best).name in found):
        ours, name = found[Case(share, best).name], round(100 * share)
        of[f"lru_ratio_{name}"] = _ratio(ours, found[Case(share, lru).name])
        of[f"most_lru_ratio_{name}"] = _ratio(found["whole"], found[Case(share, lru).name])
        of[f"whole_ratio_{name}"] = _ratio(ours, found["whole"])
    return of


if __name__ == "__main__":
    typer.run(main)
