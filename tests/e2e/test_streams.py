"""Many streams at once, and callers that leave."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import sllm
from tests.e2e import workers
from tests.e2e.cluster import Cluster
from tests.e2e.engines import others_at_night
from tests.e2e.reference import greedy
from tests.support import assert_eventually

STREAMS = 64
MAX_TOKENS = 32
MIB = 1024**2
GROWTH = {"transformers": 48 * MIB, "vllm": 192 * MIB}
"""What servers and workers may take more of after some bursts. A vLLM worker's heap comes to
pieces: it grew from 72 to 245 MiB within sixty bursts, and no further in thirty more."""


@pytest.fixture(scope="module")
def deployed(cluster: Cluster, models: Path, engine: str) -> Iterator[str]:
    """A deployment whose instance is there, and stays."""
    source = f"file://{models / 'tiny-llama'}"
    cluster.client.deploy("streams", source, engine=engine, min_replicas=1, keep_alive=600.0)
    cluster.wait_for_instances(1, "streams")
    yield "streams"
    cluster.client.delete("streams")
    cluster.wait_for_instances(0)


async def test_64_streams_at_once_are_all_correct(
    cluster: Cluster, models: Path, deployed: str
) -> None:
    prompts = [f"Number {index} of many" for index in range(STREAMS)]
    async with sllm.AsyncClient(cluster.control.address) as client:
        results = await asyncio.gather(
            *(
                client.complete(deployed, prompt, max_tokens=MAX_TOKENS, temperature=0.0)
                for prompt in prompts
            )
        )
    for prompt, result in zip(prompts, results, strict=True):
        expected = greedy(models / "tiny-llama", prompt, MAX_TOKENS)
        assert tuple(result.token_ids) == expected.token_ids, prompt


@others_at_night
async def test_memory_returns_to_where_it_was(cluster: Cluster, deployed: str, engine: str) -> None:
    async with sllm.AsyncClient(cluster.control.address) as client:

        async def burst() -> None:
            await asyncio.gather(
                *(client.complete(deployed, "Again", max_tokens=8) for _ in range(STREAMS))
            )

        await burst()  # what is allocated once is allocated now
        await burst()
        before = _memory(cluster)
        for _ in range(4):
            await burst()
        after = _memory(cluster)
    assert after - before < GROWTH[engine]


def _memory(cluster: Cluster) -> int:
    """Bytes that the servers and the workers have of their own."""
    pids = [part.process.pid for part in cluster.parts]
    pids += [instance.worker_pid for instance in cluster.client.instances()]
    return sum(psutil.Process(pid).memory_full_info().uss for pid in pids)


async def test_a_caller_that_leaves_stops_its_generation(cluster: Cluster, deployed: str) -> None:
    (socket,) = workers.sockets(cluster)
    before = workers.status(socket).counters
    async with sllm.AsyncClient(cluster.control.address) as client:
        stream = client.generate(deployed, "For ever", max_tokens=200, ignore_eos=True)
        async for event in stream:
            if isinstance(event, sllm.Tokens):
                break
        await stream.cancel()
        cancelled = before.cancelled_requests + 1
        await assert_eventually(
            lambda: workers.status(socket).counters.cancelled_requests == cancelled
        )
        counters = workers.status(socket).counters
        assert counters.running_requests == 0
        assert counters.generated_tokens < before.generated_tokens + 200

        await client.complete(deployed, "After", max_tokens=3, ignore_eos=True)
        after = workers.status(socket).counters
    assert after.generated_tokens == counters.generated_tokens + 3, "it went on after all"


async def test_a_request_can_be_cancelled_by_its_id(cluster: Cluster, deployed: str) -> None:
    async with sllm.AsyncClient(cluster.control.address) as client:
        stream = client.generate(
            deployed, "For ever", max_tokens=200, ignore_eos=True, request_id="mine"
        )
        async for event in stream:
            if isinstance(event, sllm.Tokens):
                break
        await client.cancel("mine")
        with pytest.raises(sllm.errors.Cancelled):
            await stream.result()
    (socket,) = workers.sockets(cluster)
    await assert_eventually(lambda: not workers.status(socket).counters.running_requests)


async def test_what_goes_on_without_its_caller_can_be_cancelled(
    cluster: Cluster, deployed: str
) -> None:
    async with sllm.AsyncClient(cluster.control.address) as client:
        options: dict[str, Any] = {"ignore_eos": True, "request_id": "lingers", "linger": 60.0}
        async with client.generate(deployed, "For ever", max_tokens=450, **options) as stream:
            while not isinstance(await stream.receive(), sllm.Tokens):
                pass
        (socket,) = workers.sockets(cluster)
        before = workers.status(socket).counters
        await client.cancel("lingers")
        await assert_eventually(lambda: not workers.status(socket).counters.running_requests)
        after = workers.status(socket).counters
    assert after.cancelled_requests == before.cancelled_requests + 1, "it went on to its end"


async def test_an_id_can_be_used_again_at_once_after_its_request_was_cancelled(
    cluster: Cluster, deployed: str
) -> None:
    options: dict[str, Any] = {"ignore_eos": True, "temperature": 0.0, "request_id": "again"}
    async with sllm.AsyncClient(cluster.control.address) as client:
        expected = await client.complete(deployed, "For ever", max_tokens=40, **options)
        for _ in range(10):
            stream = client.generate(deployed, "For ever", max_tokens=400, **options)
            while not isinstance(await stream.receive(), sllm.Tokens):
                pass
            await stream.cancel()
            again = await client.complete(deployed, "For ever", max_tokens=40, **options)
            assert again.token_ids == expected.token_ids
