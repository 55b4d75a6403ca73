"""A batch over models that do not fit together, beside people who wait; servers killed meanwhile.

    PYTHONPATH=examples python -m bench.batching --requests 10000 --json FILE

People ask for one of three models at random moments, of which the nodes hold two at a time. The
time to their first token is taken without a batch, with one, and without it again. Then the
control plane and every node are killed once each while the rest of the batch is done: every
request of it has to be answered once.
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
NODES = 2
NAMES = ("a", "b", "c")
PAUSE_SECONDS = 0.3
"""Between two people, on average."""
ANSWER_TOKENS = 16
BATCH_TOKENS = 32
LONG_SECONDS = 3600.0
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


def percentile(seconds: Sequence[float], share: float) -> float:
    """Seconds within which that share of them had their first token; NaN if there are none."""
    ordered = sorted(seconds)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else math.nan


@asynccontextmanager
async def people(client: sllm.AsyncClient, seed: int) -> AsyncIterator[People]:
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
                group.create_task(ask(chance.choice(NAMES)))

    coming = asyncio.create_task(come())
    yield found
    coming.cancel()


def requests(count: int) -> Iterator[Any]:
    """Those of the batch, one model after the other."""
    for number in range(count):
        name = NAMES[number % len(NAMES)]
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

    quiet: People
    beside: People
    seconds: float
    """For the whole batch."""
    submit_seconds: float
    answered: int
    failed: int
    twice: int
    wrong: int
    """Answers with another number of tokens than were asked for."""

    @property
    def ratio(self) -> float:
        """First tokens beside the batch over those without it, on average."""
        return statistics.mean(self.beside.all) / statistics.mean(self.quiet.all)


async def measure(
    cluster: LocalCluster, count: int, seconds: float, options: Mapping[str, Any]
) -> Outcome:
    """Deploys the models with these options, and measures."""
    async with sllm.AsyncClient(cluster.address) as client:
        for name in NAMES:
            await client.deploy(
                name, f"file://{MODEL}", kv_cache_tokens=10**6, keep_alive=10.0, **options
            )
            await client.complete(name, "first", max_tokens=2)
        quiet = People()
        await _listen(client, quiet, seconds / 2, seed=1)
        began = time.monotonic()
        batch = await client.submit_batch(requests(count))
        submit_seconds = time.monotonic() - began
        reading = asyncio.create_task(_read(client, batch.batch_id))
        beside = People()
        await _listen(client, beside, seconds, seed=2)
        async with people(client, seed=3):
            for name in ("control", *(f"node-{index + 1}" for index in range(NODES))):
                async with asyncio.timeout(STRIKE_SECONDS):
                    await _strike(client, cluster, batch.batch_id, name)
            results = await asyncio.wait_for(reading, LONG_SECONDS)
        took = time.monotonic() - began
        await _listen(client, quiet, seconds / 2, seed=4)
    ids = Counter(one.request_id for one in results)
    answers = [one.result for one in results if one.result]
    return Outcome(
        quiet=quiet,
        beside=beside,
        seconds=took,
        submit_seconds=submit_seconds,
        answered=len(answers),
        failed=len(results) - len(answers),
        twice=ids.total() - len(ids),
        wrong=sum(len(one.token_ids) != BATCH_TOKENS for one in answers),
    )


async def _listen(client: sllm.AsyncClient, into: People, seconds: float, seed: int) -> None:
    async with people(client, seed) as found:
        await asyncio.sleep(seconds)
    into.warm += found.warm
    into.cold += found.cold
    into.errors += found.errors


async def _read(client: sllm.AsyncClient, batch_id: str) -> list[sllm.BatchResult]:
    return [one async for one in client.batch_results(batch_id, reattach=120.0)]


async def _strike(
    client: sllm.AsyncClient, cluster: LocalCluster, batch_id: str, name: str
) -> None:
    """Kills a server once more of the batch has ended, if any of it is left; it comes back."""
    before = await client.batch(batch_id)
    more = min(before.requests, before.finished + 100)
    while (await client.batch(batch_id)).finished < more:  # noqa: ASYNC110 - of another process
        await asyncio.sleep(0.1)
    while not _killed(cluster, name):  # noqa: ASYNC110 - the same
        await asyncio.sleep(0.1)
    while not await _is_whole(client):  # noqa: ASYNC110 - the same
        await asyncio.sleep(0.1)


def _killed(cluster: LocalCluster, name: str) -> bool:
    try:
        cluster.server(name).kill()
    except (StopIteration, psutil.Error):  # one that was killed before is not seen to have gone yet
        return False
    return True


async def _is_whole(client: sllm.AsyncClient) -> bool:
    try:
        return len(await client.nodes()) == NODES
    except errors.Unavailable:
        return False


def main(
    requests: Annotated[int, typer.Option(help="Of the batch.")] = 10_000,
    seconds: Annotated[float, typer.Option(help="How long people are listened to.")] = 60.0,
    engine: Annotated[str, typer.Option(help="vllm or transformers.")] = DEFAULT_ENGINE,
    concurrency: Annotated[int, typer.Option(help="Requests of one instance at once.")] = 64,
    json: Annotated[Path | None, typer.Option(help="Write the main figures here.")] = None,
) -> None:
    """Runs it and prints what has come of it; fails if a request was not answered once."""
    with (
        tempfile.TemporaryDirectory() as scratch,
        local_cluster(
            Path(scratch), dram_bytes=256 * MIB, kv_bytes=64 * MIB, nodes=NODES, engines=engine
        ) as cluster,
    ):
        cluster.wait_for_engines(NODES)
        options = {"engine": engine, "max_concurrency": concurrency}
        outcome = asyncio.run(measure(cluster, requests, seconds, options))
    _print(outcome, requests, f"{engine}, {concurrency} at once")
    write_figures(
        json,
        {
            "first_token_ratio": outcome.ratio,
            "first_token_ratio_warm": statistics.median(outcome.beside.warm)
            / statistics.median(outcome.quiet.warm),
            "first_token_ratio_cold": statistics.median(outcome.beside.cold)
            / statistics.median(outcome.quiet.cold),
            "requests_per_second": requests / outcome.seconds,
            "submitted_per_second": requests / outcome.submit_seconds,
            "answered": outcome.answered,
            "failed": outcome.failed,
            "twice": outcome.twice,
        },
    )
    whole = outcome.answered == requests and not (outcome.twice or outcome.wrong)
    raise typer.Exit(0 if whole else 1)


def _print(outcome: Outcome, requests: int, engine: str) -> None:
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
        f"First tokens of people, ms; {engine}, {NODES} nodes with room for one instance each",
        ("", "people", "P50", "P90", "P99", "mean"),
        rows,
    )
    errors = outcome.quiet.errors + outcome.beside.errors
    print_table(
        f"A batch of {requests}, {BATCH_TOKENS} tokens each, {len(NAMES)} models",
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
