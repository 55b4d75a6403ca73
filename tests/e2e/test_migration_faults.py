"""Whoever fails while generations move, they end complete and correct, and nothing is left over."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

import sllm
from sllm import errors
from tests.e2e.cluster import Cluster, Part, running
from tests.e2e.test_migration import ask, read_to, same
from tests.support import assert_eventually

COUNT = 4
TOKENS = 400
SECONDS = 90.0
STOPPED_SECONDS = 12.0
"""Longer than anybody waits for one that does not answer."""
MOMENTS = (0.0, 0.03, 0.1)
"""Seconds after a migration was asked for: before its first round, within it, and about the end."""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Iterator[Cluster]:
    """Two nodes with an instance each of one deployment."""
    with running(tmp_path_factory.mktemp("pair")) as cluster:
        source = f"file://{models / 'tiny-llama'}"
        cluster.client.deploy("moving", source, min_replicas=2, max_replicas=2, keep_alive=600.0)
        yield cluster


@pytest.fixture
async def client(pair: Cluster) -> AsyncIterator[sllm.AsyncClient]:
    for part in pair.parts:
        if part.process.poll() is not None:
            part.restart()
    await asyncio.to_thread(pair.wait_for_nodes, 2)
    await asyncio.to_thread(pair.wait_for_instances, 2, "moving")
    async with sllm.AsyncClient(pair.control.address) as client:
        yield client


class Moving:
    """Generations of one instance that are being moved away from it."""

    def __init__(self, client: sllm.AsyncClient, streams: list[sllm.AsyncStream]) -> None:
        self._client = client
        self.streams = streams
        self.source = ""
        self.destination = ""

    async def begin(self) -> "Moving":
        """Asks for the migration of those that are on the instance with most of them."""
        await asyncio.gather(*(read_to(stream, 8) for stream in self.streams))
        found = sorted(await self._client.instances(), key=lambda one: one.running_requests)
        self.source, self.destination = found[-1].node_id, found[0].node_id
        self.results = [asyncio.create_task(stream.result()) for stream in self.streams]
        self.moves = [asyncio.create_task(self._move(stream)) for stream in self.streams]
        return self

    async def _move(self, stream: sllm.AsyncStream) -> None:
        try:
            await self._client.migrate(request_id=stream.request_id, timeout=SECONDS)
        except errors.SllmError:
            return  # what matters is what becomes of the generation

    async def end(self) -> list[sllm.Result]:
        """What has become of the generations."""
        async with asyncio.timeout(SECONDS):
            await asyncio.gather(*self.moves)
            return await asyncio.gather(*self.results)


async def undisturbed(client: sllm.AsyncClient) -> list[sllm.Result]:
    streams = [ask(client, number, max_tokens=TOKENS) for number in range(COUNT)]
    return await asyncio.gather(*(stream.result() for stream in streams))


async def moving(client: sllm.AsyncClient) -> Moving:
    streams = [ask(client, number, max_tokens=TOKENS) for number in range(COUNT)]
    return await Moving(client, streams).begin()


async def nothing_is_left(client: sllm.AsyncClient) -> None:
    async def idle() -> bool:
        found = await client.instances()
        return not any(one.running_requests for one in found)

    await assert_eventually(idle, timeout=40.0)


def party(pair: Cluster, who: str, move: Moving) -> Part:
    if who == "router":
        return pair.control
    return pair.node_of(move.source if who == "source" else move.destination)


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("who", ["source", "destination", "router"])
async def test_a_party_is_killed(
    pair: Cluster, client: sllm.AsyncClient, who: str, moment: float
) -> None:
    expected = await undisturbed(client)
    move = await moving(client)
    await asyncio.sleep(moment)
    part = party(pair, who, move)
    part.kill()
    part.restart()
    same(await move.end(), expected)
    await nothing_is_left(client)


@pytest.mark.parametrize("moment", MOMENTS[:2])
@pytest.mark.parametrize("who", ["source", "destination"])
async def test_a_party_is_stopped_and_goes_on(
    pair: Cluster, client: sllm.AsyncClient, who: str, moment: float
) -> None:
    expected = await undisturbed(client)
    move = await moving(client)
    await asyncio.sleep(moment)
    process = party(pair, who, move).process.pid
    os.kill(process, signal.SIGSTOP)
    try:
        await asyncio.sleep(STOPPED_SECONDS)
    finally:
        os.kill(process, signal.SIGCONT)
    same(await move.end(), expected)
    await nothing_is_left(client)


@pytest.mark.parametrize("moment", MOMENTS)
async def test_the_callers_leave(client: sllm.AsyncClient, moment: float) -> None:
    move = await moving(client)
    await asyncio.sleep(moment)
    for stream in move.streams:
        await stream.cancel()
    await asyncio.gather(*move.moves)
    outcomes = await asyncio.gather(*move.results, return_exceptions=True)
    assert all(isinstance(one, errors.Cancelled | sllm.Result) for one in outcomes)
    await nothing_is_left(client)
