"""A batch over models that do not fit together, beside people who wait; servers killed meanwhile.

    PYTHONPATH=examples python -m bench.batching --requests 10000 --json FILE

People ask for one of a few models at random moments, of which the nodes hold fewer at a time. The
time to their first token is taken without a batch and with one, in turn. Then the control plane and
every node are killed once each while a batch is done: every request of it has to be answered once.
"""

import asyncio
import math
import random
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer

import sllm
from bench.local_cluster import DEFAULT_ENGINE, MIB, LocalCluster, local_cluster
from bench.report import print_table, write_figures
from sllm import errors

MODEL = Path(__file__).parent.parent / "examples" / "tiny-llama"
PAUSE_SECONDS = 0.3
"""Between two people, on average."""
ANSWER_TOKENS = 16
BATCH_TOKENS = 32
LONG_SECONDS = 3600.0
FILLED_SECONDS = 1.0
"""Until a batch has what it gets, and until nothing of it is left."""
STRIKE_SECONDS = 120.0
"""For a server to be killed and to be back."""


@dataclass(slots=True)
class People:
    """Those who wait: what they saw."""

    warm: list[float] = field(default_factory=list)
    """Seconds to the first token, where an instance was there."""
    cold: list[float] = field(default_factory=list)
    """The same where one had to start."""
    errors: Counter[str] = field(default_factory=Counter)

    @property
    def all(self) -> list[float]:
        """Seconds of both."""
        return [*self.warm, *self.cold]

    def __add__(self, other: "People") -> "People":
        return People(self.warm + other.warm, self.cold + other.cold, self.errors + other.errors)


def percentile(seconds: Sequence[float], share: float) -> float:
    """Seconds within which that share of them had their first token; NaN if there are none."""
    ordered = sorted(seconds)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else math.nan


@asynccontextmanager
async def people(
    client: sllm.AsyncClient, names: Sequence[str], seed: int
) -> AsyncIterator[People]:
    """People who ask for as long as the context lasts, at moments that the seed decides."""
    found, chance = People(), random.Random(seed)

    async def ask(name: str) -> None:
        began = first = time.monotonic()
        try:
            async with client.generate(
                name, "Now", max_tokens=ANSWER_TOKENS, ignore_eos=True, timeout=120.0
            ) as stream:
                async for event in stream:
                    if isinstance(event, sllm.Tokens) and not event.first_index:
                        first = time.monotonic()
                is_cold = (await stream.result()).receipt.cold
                (found.cold if is_cold else found.warm).append(first - began)
        except errors.SllmError as error:
            found.errors[error.reason] += 1

    async def come() -> None:
        async with asyncio.TaskGroup() as group:
            while True:
                await asyncio.sleep(chance.expovariate(1 / PAUSE_SECONDS))
                group.create_task(ask(chance.choice(names)))

    coming = asyncio.create_task(come())
    yield found
    coming.cancel()


def requests(count: int, names: Sequence[str]) -> Iterator[Any]:
    """Those of the batch, one model after the other."""
    for number in range(count):
        name = names[number % len(names)]
        yield {
            "deployment": name,
            "prompt": f"Number {number} of many",
            "request_id": str(number),
            "max_tokens": BATCH_TOKENS,
            "ignore_eos": True,
            "temperature": 0,
        }


@dataclass(frozen=True, slots=True)
class Outcome:
    """What has come of all of it."""

    rounds: Sequence[tuple[People, People]]
    """Without a batch and beside one, in turn."""
    seconds: float
    """For the whole batch."""
    submit_seconds: float
    answered: int
    failed: int
    twice: int
    wrong: int
    """Answers with another number of tokens than were asked for."""

    @property
    def quiet(self) -> People:
        """All without a batch."""
        return sum((quiet for quiet, _ in self.rounds), People())

    @property
    def beside(self) -> People:
        """All beside one."""
        return sum((beside for _, beside in self.rounds), People())

    @property
    def ratio(self) -> float:
        """First tokens beside the batch over those without it, on average."""
        return statistics.mean(self.beside.all) / statistics.mean(self.quiet.all)

    def ratios(self, kind: str) -> list[float]:
        """Medians beside the batch over those without it, of each round that has both."""
        pairs = [(getattr(quiet, kind), getattr(beside, kind)) for quiet, beside in self.rounds]
        return [
            statistics.median(beside) / statistics.median(quiet)
            for quiet, beside in pairs
            if quiet and beside
        ]


async def measure(
    cluster: LocalCluster,
    names: Sequence[str],
    count: int,
    seconds: float,
    rounds: int,
    options: Mapping[str, Any],
) -> Outcome:
    """Deploys the models with these options, and measures."""
    async with sllm.AsyncClient(cluster.address) as client:
        for name in names:
            await client.deploy(
                name, f"file://{MODEL}", kv_cache_tokens=10**6, keep_alive=10.0, **options
            )
            await client.complete(name, "first", max_tokens=2)
        seen = [
            await _round(client, names, count, seconds / rounds, number) for number in range(rounds)
        ]
        nodes = len(await client.nodes())
        began = time.monotonic()
        batch = await client.submit_batch(requests(count, names))
        submit_seconds = time.monotonic() - began
        reading = asyncio.create_task(_read(client, batch.batch_id))
        async with people(client, names, seed=2 * rounds):
            for name in ("control", *(f"node-{index + 1}" for index in range(nodes))):
                async with asyncio.timeout(STRIKE_SECONDS):
                    await _strike(client, cluster, batch.batch_id, name, nodes)
            results = await asyncio.wait_for(reading, LONG_SECONDS)
        took = time.monotonic() - began
    ids = Counter(one.request_id for one in results)
    answers = [one.result for one in results if one.result]
    return Outcome(
        rounds=seen,
        seconds=took,
        submit_seconds=submit_seconds,
        answered=len(answers),
        failed=len(results) - len(answers),
        twice=ids.total() - len(ids),
        wrong=sum(len(one.token_ids) != BATCH_TOKENS for one in answers),
    )


async def _round(
    client: sllm.AsyncClient, names: Sequence[str], count: int, seconds: float, number: int
) -> tuple[People, People]:
    """People without a batch, and as long beside one that fills what there is."""
    quiet = await _listen(client, names, seconds, seed=2 * number)
    batch = await client.submit_batch(requests(count, names))
    try:
        await asyncio.sleep(FILLED_SECONDS)
        beside = await _listen(client, names, seconds, seed=2 * number + 1)
        left = await client.batch(batch.batch_id)
        if left.finished == left.requests:
            raise RuntimeError("the batch was done before people were: give it more --requests")
    finally:
        await client.cancel_batch(batch.batch_id)
        await asyncio.sleep(FILLED_SECONDS)
    return quiet, beside


async def _listen(
    client: sllm.AsyncClient, names: Sequence[str], seconds: float, seed: int
) -> People:
    async with people(client, names, seed) as found:
        await asyncio.sleep(seconds)
    return found


async def _read(client: sllm.AsyncClient, batch_id: str) -> list[sllm.BatchResult]:
    return [one async for one in client.batch_results(batch_id, reattach=120.0)]


async def _strike(
    client: sllm.AsyncClient, cluster: LocalCluster, batch_id: str, name: str, nodes: int
) -> None:
    """Kills a server once more of the batch has ended, if any of it is left; it comes back."""
    before = await client.batch(batch_id)
    more = min(before.requests, before.finished + 100)
    while (await client.batch(batch_id)).finished < more:  # noqa: ASYNC110 - of another process
        await asyncio.sleep(0.1)
    while not _killed(cluster, name):  # noqa: ASYNC110 - the same
        await asyncio.sleep(0.1)
    while not await _is_whole(client, nodes):  # noqa: ASYNC110 - the same
        await asyncio.sleep(0.1)


def _killed(cluster: LocalCluster, name: str) -> bool:
    try:
        cluster.server(name).kill()
    except (StopIteration, psutil.Error):  # one that was killed before is not seen to have gone yet
        return False
    return True


async def _is_whole(client: sllm.AsyncClient, nodes: int) -> bool:
    try:
        return len(await client.nodes()) == nodes
    except errors.Unavailable:
        return False


def main(
    requests: Annotated[int, typer.Option(help="Of the batch.")] = 10_000,
    seconds: Annotated[
        float, typer.Option(help="How long people are listened to, of each.")
    ] = 60.0,
    rounds: Annotated[int, typer.Option(help="In which that is, in turn.")] = 6,
    nodes: Annotated[int, typer.Option(help="With room for one instance each.")] = 2,
    models: Annotated[int, typer.Option(help="That people and batch ask for.")] = 3,
    engine: Annotated[str, typer.Option(help="vllm or transformers.")] = DEFAULT_ENGINE,
    concurrency: Annotated[int, typer.Option(help="Requests of one instance at once.")] = 64,
    json: Annotated[Path | None, typer.Option(help="Write the main figures here.")] = None,
) -> None:
    """Runs it and prints what has come of it; fails if a request was not answered once."""
    with (
        tempfile.TemporaryDirectory() as scratch,
        local_cluster(
            Path(scratch), dram_bytes=256 * MIB, kv_bytes=64 * MIB, nodes=nodes, engines=engine
        ) as cluster,
    ):
        cluster.wait_for_engines(nodes)
        names = [f"m{number}" for number in range(models)]
        options = {"engine": engine, "max_concurrency": concurrency}
        outcome = asyncio.run(measure(cluster, names, requests, seconds, rounds, options))
    _print(outcome, requests, models, f"{engine}, {concurrency} at once, {nodes} nodes")
    write_figures(
        json,
        {
            "first_token_ratio": outcome.ratio,
            **{
                f"first_token_ratio_{kind}": statistics.median(ratios)
                for kind in ("warm", "cold")
                if (ratios := outcome.ratios(kind))
            },
            "requests_per_second": requests / outcome.seconds,
            "submitted_per_second": requests / outcome.submit_seconds,
            "answered": outcome.answered,
            "failed": outcome.failed,
            "twice": outcome.twice,
        },
    )
    whole = outcome.answered == requests and not (outcome.twice or outcome.wrong)
    raise typer.Exit(0 if whole else 1)


def _print(outcome: Outcome, requests: int, models: int, engine: str) -> None:
    rows = [
        (
            f"{kind}, {name}",
            str(len(seconds)),
            *(f"{1000 * percentile(seconds, share):.1f}" for share in (0.5, 0.9, 0.99)),
            f"{1000 * statistics.mean(seconds or [math.nan]):.1f}",
        )
        for name, seen in (("without", outcome.quiet), ("beside the batch", outcome.beside))
        for kind, seconds in (("warm", seen.warm), ("cold", seen.cold))
    ]
    print_table(
        f"First tokens of people, ms; {engine} with room for one instance each",
        ("", "people", "P50", "P90", "P99", "mean"),
        rows,
    )
    errors = outcome.quiet.errors + outcome.beside.errors
    ratios = {kind: sorted(outcome.ratios(kind)) for kind in ("warm", "cold")}
    print_table(
        f"First tokens beside the batch / without, medians, of {len(outcome.rounds)} rounds",
        ("people", "median", "least", "most"),
        [
            (kind, *(f"{one:.2f}" for one in (statistics.median(some), some[0], some[-1])))
            for kind, some in ratios.items()
            if some
        ],
    )
    print_table(
        f"A batch of {requests}, {BATCH_TOKENS} tokens each, {models} models",
        ("what", ""),
        [
            ("seconds", f"{outcome.seconds:.1f}"),
            ("requests per second", f"{requests / outcome.seconds:.1f}"),
            ("seconds to submit", f"{outcome.submit_seconds:.2f}"),
            ("answered", str(outcome.answered)),
            ("failed", str(outcome.failed)),
            ("answered twice", str(outcome.twice)),
            ("answered otherwise", str(outcome.wrong)),
            ("first tokens, beside / without, mean", f"{outcome.ratio:.2f}"),
            ("people who got an error", str(errors.total())),
        ],
    )


if __name__ == "__main__":
    typer.run(main)
