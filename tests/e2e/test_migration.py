"""Live migration through the whole system: outputs are what they would have been."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import sllm
from sllm import errors
from tests.e2e.cluster import Cluster, running

TOKENS = 300
CAUGHT_SECONDS = 60.0


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Iterator[Cluster]:
    """Two nodes with an instance each of one deployment, which stay."""
    with running(tmp_path_factory.mktemp("pair")) as cluster:
        source = f"file://{models / 'tiny-llama'}"
        cluster.client.deploy("moving", source, min_replicas=2, max_replicas=2, keep_alive=600.0)
        cluster.wait_for_instances(2, "moving")
        yield cluster


@pytest.fixture
async def client(pair: Cluster) -> AsyncIterator[sllm.AsyncClient]:
    async with sllm.AsyncClient(pair.control.address) as client:
        yield client


def ask(client: sllm.AsyncClient, number: int, **options: Any) -> sllm.AsyncStream:
    """A request of its own kind: greedy or seeded, with stop strings or logprobs."""
    options = {"max_tokens": TOKENS, "ignore_eos": True, "stop": ["never in it"], **options}
    options |= {"temperature": 0.0} if number % 2 else {"temperature": 1.0, "seed": number}
    return client.generate("moving", f"Caller number {number} says", **options)


async def read_to(stream: sllm.AsyncStream, count: int) -> None:
    """Reads until there are `count` tokens or more."""
    seen = 0
    while seen < count:
        event = await stream.receive()
        assert event is not None, "the generation ended before"
        seen += len(event.token_ids) if isinstance(event, sllm.Tokens) else 0


async def other_node(client: sllm.AsyncClient, node_id: str) -> str:
    (other,) = [node.node_id for node in await client.nodes() if node.node_id != node_id]
    return other


def same(found: Sequence[sllm.Result], expected: Sequence[sllm.Result]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.token_ids == other.token_ids
        assert one.text == other.text
        assert one.usage.completion_tokens == other.usage.completion_tokens
        assert one.usage.prompt_tokens == other.usage.prompt_tokens
        assert one.finish_reason == other.finish_reason


async def move(
    client: sllm.AsyncClient, stream: sllm.AsyncStream, to_node: str | None = None
) -> sllm.Migration:
    return await client.migrate(request_id=stream.request_id, to_node=to_node)


@pytest.mark.parametrize("at", [1, 2, 9, 31, 32, 33, 64, 100, 180])
@pytest.mark.parametrize("number", [0, 1])
async def test_one_moves_at_any_step(client: sllm.AsyncClient, at: int, number: int) -> None:
    expected = await ask(client, number, logprobs=1).result()
    stream = ask(client, number, logprobs=1)
    await read_to(stream, at)
    migration = await move(client, stream)
    result = await stream.result()

    same([result], [expected])
    assert result.logprobs is not None
    assert len(result.logprobs) == TOKENS
    assert [one.outcome for one in migration.requests] == ["MOVED"]
    (moved,) = result.migrations
    assert moved.to_node_id == migration.node_id != moved.from_node_id
    assert moved.reason == "OPERATOR"


@pytest.mark.parametrize("number", [0, 1])
async def test_there_and_back_again(client: sllm.AsyncClient, number: int) -> None:
    options = {"max_tokens": 400}
    expected = await ask(client, number, **options).result()
    stream = ask(client, number, **options)
    await read_to(stream, 3)
    for _ in range(4):
        await move(client, stream)
        await read_to(stream, 5)
    result = await stream.result()
    same([result], [expected])
    nodes = [one.to_node_id for one in result.migrations]
    assert len(nodes) == 4
    assert nodes[0] == nodes[2] != nodes[1] == nodes[3]


@pytest.mark.parametrize("count", [1, 4, 16])
async def test_many_move_together(client: sllm.AsyncClient, count: int) -> None:
    expected = await asyncio.gather(*(ask(client, n).result() for n in range(count)))
    streams = [ask(client, n) for n in range(count)]
    await asyncio.gather(*(read_to(stream, 20) for stream in streams))
    outcomes = await asyncio.gather(*(move(client, stream) for stream in streams))
    results = await asyncio.gather(*(stream.result() for stream in streams))
    same(results, expected)
    assert all(one.migrations for one in results)
    assert all(one.requests[0].outcome == "MOVED" for one in outcomes)


async def test_a_stop_string_is_met_across_a_migration(client: sllm.AsyncClient) -> None:
    free = await ask(client, 1).result()
    stop = free.text[len(free.text) // 2 :][:6]
    expected = await ask(client, 1, stop=[stop]).result()
    for at in range(1, max(2, len(expected.token_ids) - 12), 11):
        stream = ask(client, 1, stop=[stop])
        await read_to(stream, at)
        try:
            await move(client, stream)
        except errors.RequestNotFound:
            continue  # it has met the stop string first
        result = await stream.result()
        same([result], [expected])
        assert result.stop == stop


async def test_a_caller_that_leaves_meanwhile(client: sllm.AsyncClient, pair: Cluster) -> None:
    stream = ask(client, 0, max_tokens=400)
    await read_to(stream, 5)
    moving = asyncio.create_task(move(client, stream))
    await asyncio.sleep(0)
    await stream.cancel()
    await asyncio.gather(moving, return_exceptions=True)

    def idle() -> bool:
        return not any(one.running_requests for one in pair.client.instances())

    await asyncio.to_thread(_wait, idle)


def _wait(check: Any) -> None:
    from tests.support import wait_until

    wait_until(check, CAUGHT_SECONDS)


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ({"request_id": "nobody"}, errors.RequestNotFound),
        ({"instance_id": "nothing"}, errors.InstanceNotFound),
    ],
)
async def test_the_unknown_is_refused(
    client: sllm.AsyncClient, named: dict[str, str], expected: type[errors.SllmError]
) -> None:
    with pytest.raises(expected):
        await client.migrate(**named)  # type: ignore[arg-type]  # by name


async def test_bad_destinations_leave_it_undisturbed(client: sllm.AsyncClient) -> None:
    expected = await ask(client, 0).result()
    stream = ask(client, 0)
    await read_to(stream, 3)
    (here,) = [one.node_id for one in await client.instances() if one.running_requests]
    with pytest.raises(errors.NodeNotFound):
        await move(client, stream, "nowhere")
    with pytest.raises(errors.InvalidArgument):
        await move(client, stream, here)
    result = await stream.result()
    same([result], [expected])
    assert not result.migrations
    with pytest.raises(errors.RequestNotFound):
        await move(client, stream)
