"""Minutes of load while generations are moved, and nodes drained, killed and restarted at random.

    PYTHONPATH=examples python -m bench.soak --minutes 3 --json FILE

Every caller asks again and again for one of a few generations whose outcome is known from before.
In the end no token may have been lost, and none come twice, nobody may still wait, and nothing be
left on the nodes. Failures are counted with their reasons: there is one only where no node was left
for as long as a request waits.
"""

import asyncio
import random
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import psutil
import typer

import sllm
from bench.local_cluster import DEFAULT_ENGINE, MIB, LocalCluster, local_cluster
from bench.report import print_table, write_figures
from sllm import errors

MODEL = Path(__file__).parent.parent / "examples" / "tiny-llama"
NODES = 3
KINDS = 12
"""Different generations."""
TOKENS = 400
PAUSE_SECONDS = (1.0, 4.0)
"""Between two blows."""
END_SECONDS = 120.0
"""Time that a blow has, and the last requests, and then the nodes to be idle."""
LATE = "still waiting at the end"


@dataclass(slots=True)
class Tally:
    """What has come of all requests."""

    whole: int = 0
    """Answered with the tokens and the text that were expected."""
    other: int = 0
    """Answered with others."""
    moved: int = 0
    """Times that a generation has gone on elsewhere."""
    lost: int = 0
    twice: int = 0
    left: int = 0
    """Requests that nodes still worked on when all had been answered."""
    errors: Counter[str] = field(default_factory=Counter)
    blows: Counter[str] = field(default_factory=Counter)

    def compare(self, found: sllm.Result, expected: sllm.Result) -> None:
        """Counts a generation that has ended."""
        same = sum(a == b for a, b in zip(expected.token_ids, found.token_ids, strict=False))
        self.lost += len(expected.token_ids) - same
        self.twice += max(0, len(found.token_ids) - len(expected.token_ids))
        whole = found.token_ids == expected.token_ids and found.text == expected.text
        self.whole += whole
        self.other += not whole
        self.moved += len(found.migrations)

    @property
    def clean(self) -> bool:
        """Whether all came as it should; requests that failed with a reason aside."""
        return not (self.other or self.lost or self.twice or self.left or self.errors[LATE])


class Soak:
    """One deployment under load."""

    def __init__(self, cluster: LocalCluster, client: sllm.AsyncClient, seed: int) -> None:
        self._cluster = cluster
        self._client = client
        self._random = random.Random(seed)
        self._under_way: set[str] = set()
        self.tally = Tally()

    async def run(self, callers: int, seconds: float) -> None:
        """Learns what is to be expected, and then asks for it under blows."""
        await self._client.deploy("soak", f"file://{MODEL}", max_replicas=NODES, keep_alive=600.0)
        expected = [await self._ask(kind).result() for kind in range(KINDS)]
        until = time.monotonic() + seconds
        asking = [asyncio.create_task(self._caller(expected, until)) for _ in range(callers)]
        await self._blows(until)
        done, late = await asyncio.wait(asking, timeout=END_SECONDS)
        self.tally.errors[LATE] += len(late)
        for task in late:
            task.cancel()
        for task in done:
            task.result()
        self.tally.left = await self._left()

    async def _left(self) -> int:
        """Requests that nodes work on, once there are none or it has been waited long enough."""
        until = time.monotonic() + END_SECONDS
        while (left := await self._running()) and time.monotonic() < until:  # noqa: ASYNC110
            await asyncio.sleep(0.2)
        return left

    async def _running(self) -> int:
        return sum(one.running_requests for one in await self._client.instances())

    def _ask(self, kind: int) -> sllm.AsyncStream:
        return self._client.generate(
            "soak",
            f"Number {kind} of many",
            max_tokens=TOKENS,
            ignore_eos=True,
            seed=kind,
            temperature=0.0 if kind % 2 else 0.8,
        )

    async def _caller(self, expected: Sequence[sllm.Result], until: float) -> None:
        while time.monotonic() < until:
            kind = self._random.randrange(KINDS)
            stream = self._ask(kind)
            self._under_way.add(stream.request_id)
            try:
                result = await stream.result()
            except errors.SllmError as error:
                self.tally.errors[f"{error.reason}: {error.message}"[:60]] += 1
            else:
                self.tally.compare(result, expected[kind])
            finally:
                self._under_way.discard(stream.request_id)

    async def _blows(self, until: float) -> None:
        kinds: list[Callable[[], Awaitable[None]]]
        kinds = [self._migrate, self._migrate, self._drain, self._kill, self._restart]
        while time.monotonic() < until:
            blow = self._random.choice(kinds)
            try:
                await blow()
                self.tally.blows[blow.__name__.strip("_")] += 1
            except errors.SllmError as error:
                self.tally.blows[f"{blow.__name__.strip('_')}: {error.reason}"] += 1
            await asyncio.sleep(self._random.uniform(*PAUSE_SECONDS))

    async def _migrate(self) -> None:
        if self._under_way:
            moving = self._random.choice(sorted(self._under_way))
            await self._client.migrate(request_id=moving, timeout=END_SECONDS)

    async def _drain(self) -> None:
        node = self._some_node()
        try:
            await self._client.drain(node, grace=20.0, timeout=END_SECONDS)
        finally:
            await self._client.undrain(node)

    async def _kill(self) -> None:
        self._some_server().kill()

    async def _restart(self) -> None:
        self._some_server().terminate()

    def _some_node(self) -> str:
        return f"node-{self._random.randrange(NODES) + 1}"

    def _some_server(self) -> psutil.Process:
        """A node's process.

        Raises:
            errors.NodeLost: The node is down already, and about to be started again.
        """
        node = self._some_node()
        try:
            return self._cluster.server(node)
        except (StopIteration, psutil.Error):
            raise errors.NodeLost(f"{node} is down") from None


def main(
    minutes: Annotated[float, typer.Option(help="How long the load lasts.")] = 3.0,
    callers: Annotated[int, typer.Option(help="Requests at once.")] = 6,
    seed: Annotated[int, typer.Option(help="Decides the blows and their order.")] = 1,
    engine: Annotated[str, typer.Option(help="vllm or transformers.")] = DEFAULT_ENGINE,
    json: Annotated[Path | None, typer.Option(help="Write the main figures here.")] = None,
) -> None:
    """Runs the load and prints what has come of it; fails if anything came wrong, or was left."""
    with (
        tempfile.TemporaryDirectory() as scratch,
        local_cluster(
            Path(scratch), dram_bytes=512 * MIB, kv_bytes=256 * MIB, nodes=NODES, engines=engine
        ) as cluster,
    ):
        cluster.wait_for_engines(NODES)
        tally = asyncio.run(_soak(cluster, callers, minutes * 60, seed))
    title = f"{minutes:g} minutes, {callers} callers, {NODES} nodes, {engine}, seed {seed}"
    _print(tally, title)
    figures = {"whole": tally.whole, "tokens_lost": tally.lost, "tokens_twice": tally.twice}
    write_figures(json, {**figures, "errors": tally.errors.total(), "moves": tally.moved})
    raise typer.Exit(0 if tally.clean else 1)


def _print(tally: Tally, title: str) -> None:
    rows = [("generations as expected", tally.whole), ("others", tally.other)]
    rows += [("moves", tally.moved), ("left on the nodes", tally.left)]
    rows += [(f"blow: {name}", count) for name, count in sorted(tally.blows.items())]
    rows += [(f"error: {name}", count) for name, count in sorted(tally.errors.items())]
    rows += [("tokens lost", tally.lost), ("tokens twice", tally.twice)]
    print_table(title, ("what", "times"), [(name, str(count)) for name, count in rows])


async def _soak(cluster: LocalCluster, callers: int, seconds: float, seed: int) -> Tally:
    async with sllm.AsyncClient(cluster.address) as client:
        soak = Soak(cluster, client, seed)
        await soak.run(callers, seconds)
        return soak.tally


if __name__ == "__main__":
    typer.run(main)
