"""Generations that tests move about, and what they are compared by."""

import asyncio
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import sllm
from sllm import errors
from tests.e2e.cluster import Cluster
from tests.support import assert_eventually

TOKENS = 200
LEAVING: dict[str, Any] = {"deployment": "leaving", "max_tokens": 400}
"""Generations that go on for longer than another node takes to start their model."""
_TRIES = 10


def ask(
    client: sllm.AsyncClient, number: int, *, deployment: str = "moving", **options: Any
) -> sllm.AsyncStream:
    """A request of its own kind: greedy or seeded, with stop strings or logprobs."""
    options = {"max_tokens": TOKENS, "ignore_eos": True, "stop": ["never in it"], **options}
    options |= {"temperature": 0.0} if number % 2 else {"temperature": 1.0, "seed": number}
    return client.generate(deployment, f"Caller number {number} says", **options)


async def busiest(client: sllm.AsyncClient, deployment: str | None = None) -> sllm.Instance:
    """The instance with the most requests, once its node has told of any."""
    found: list[sllm.Instance] = []

    async def told() -> bool:
        found[:] = await client.instances(deployment)
        return any(one.running_requests and one.worker_pid for one in found)

    await assert_eventually(told, 60.0)
    return max(found, key=lambda one: one.running_requests)


async def read_to(stream: sllm.AsyncStream, count: int) -> None:
    """Reads until there are `count` tokens or more."""
    seen = 0
    while seen < count:
        event = await stream.receive()
        assert event is not None, "the generation ended before"
        seen += len(event.token_ids) if isinstance(event, sllm.Tokens) else 0


def same(found: Sequence[sllm.Result], expected: Sequence[sllm.Result]) -> None:
    """Compares all that is the same however they were served."""
    for number, (one, other) in enumerate(zip(found, expected, strict=True)):
        pairs = zip(one.token_ids, other.token_ids, strict=False)
        differ = [(at, *pair) for at, pair in enumerate(pairs) if pair[0] != pair[1]]
        moves = [(move.reason, move.from_node_id) for move in (*one.migrations, *other.migrations)]
        assert one.token_ids == other.token_ids, f"{number}, moved {moves}: {differ[:8]}"
        assert one.text == other.text
        assert one.usage.completion_tokens == other.usage.completion_tokens
        assert one.usage.prompt_tokens == other.usage.prompt_tokens
        assert one.finish_reason == other.finish_reason


def steps(*few: int) -> list[int]:
    """Tokens after which a generation moves: a few; with `make every-step` each to the last."""
    return list(range(1, few[-1] + 1)) if os.environ.get("EVERY_STEP") else list(few)


@contextmanager
def two_instances(
    cluster: Cluster, name: str, model: Path, engine: str, **options: Any
) -> Iterator[None]:
    """A deployment with an instance on each of two nodes, which stay; deleted in the end."""
    stay: dict[str, Any] = {"min_replicas": 2, "max_replicas": 2, "keep_alive": 600.0}
    cluster.client.deploy(name, f"file://{model}", engine=engine, **stay, **options)
    cluster.wait_for_instances(2, name)
    yield
    cluster.client.delete(name)
    cluster.wait_for_instances(0, name)


async def moved(
    client: sllm.AsyncClient,
    begin: Callable[[], sllm.AsyncStream],
    at: int,
    *,
    way: str | None = None,
) -> tuple[sllm.AsyncStream, sllm.Migration]:
    """A generation that was moved after so many tokens, and how that went.

    One that has ended before anybody could move it, on a fast machine, is begun again.
    """
    for _ in range(_TRIES):
        stream = begin()
        await read_to(stream, at)
        with suppress(errors.RequestNotFound):
            migration = await client.migrate(request_id=stream.request_id, way=way)
            if migration.requests[0].outcome != "ENDED":
                return stream, migration
        await stream.result()
    raise AssertionError(f"{_TRIES} generations have ended before they were moved")


async def on_one_instance(
    client: sllm.AsyncClient, count: int
) -> tuple[str, list[sllm.AsyncStream]]:
    """Generations of a deployment with one instance, each with some tokens, and their node."""
    streams = [ask(client, number, **LEAVING) for number in range(count)]
    await asyncio.gather(*(read_to(stream, 20) for stream in streams))
    (instance,) = await client.instances(LEAVING["deployment"])
    return instance.node_id, streams


async def all_went_on(
    streams: Sequence[sllm.AsyncStream], expected: Sequence[sllm.Result], node_id: str
) -> None:
    """Reads them to their ends, for which they have left a node that is taken out of service."""
    results = await asyncio.gather(*(stream.result() for stream in streams))
    same(results, expected)
    for one in results:
        (moved,) = one.migrations
        assert moved.from_node_id == node_id != moved.to_node_id
        assert moved.reason == "DRAIN"
