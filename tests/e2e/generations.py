"""Generations that tests move about, and what they are compared by."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sllm
from tests.e2e.cluster import Cluster

TOKENS = 300


def ask(
    client: sllm.AsyncClient, number: int, *, deployment: str = "moving", **options: Any
) -> sllm.AsyncStream:
    """A request of its own kind: greedy or seeded, with stop strings or logprobs."""
    options = {"max_tokens": TOKENS, "ignore_eos": True, "stop": ["never in it"], **options}
    options |= {"temperature": 0.0} if number % 2 else {"temperature": 1.0, "seed": number}
    return client.generate(deployment, f"Caller number {number} says", **options)


async def read_to(stream: sllm.AsyncStream, count: int) -> None:
    """Reads until there are `count` tokens or more."""
    seen = 0
    while seen < count:
        event = await stream.receive()
        assert event is not None, "the generation ended before"
        seen += len(event.token_ids) if isinstance(event, sllm.Tokens) else 0


def same(found: Sequence[sllm.Result], expected: Sequence[sllm.Result]) -> None:
    """Compares all that is the same however they were served."""
    for one, other in zip(found, expected, strict=True):
        assert one.token_ids == other.token_ids
        assert one.text == other.text
        assert one.usage.completion_tokens == other.usage.completion_tokens
        assert one.usage.prompt_tokens == other.usage.prompt_tokens
        assert one.finish_reason == other.finish_reason


@contextmanager
def two_instances(cluster: Cluster, name: str, model: Path, engine: str) -> Iterator[None]:
    """A deployment with an instance on each of two nodes, which stay; deleted in the end."""
    options: dict[str, Any] = {"min_replicas": 2, "max_replicas": 2, "keep_alive": 600.0}
    cluster.client.deploy(name, f"file://{model}", engine=engine, **options)
    cluster.wait_for_instances(2, name)
    yield
    cluster.client.delete(name)
    cluster.wait_for_instances(0, name)
