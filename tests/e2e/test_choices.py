"""Several samples of one prompt, through the whole system: each is what it would be alone."""

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from serverlessllm.v1 import cluster_service_pb2 as cluster_pb
from serverlessllm.v1 import inference_service_pb2 as pb
from serverlessllm.v1.cluster_service_pb2_grpc import ClusterServiceStub
from serverlessllm.v1.inference_service_pb2_grpc import InferenceServiceStub

import sllm
from sllm import errors, rpc
from tests.e2e import workers
from tests.e2e.cluster import Cluster
from tests.e2e.engines import by_turns, others_at_night
from tests.e2e.generations import busiest, steps, two_instances
from tests.e2e.nights import paired
from tests.support import assert_eventually

N = 4
SEED = 2**64 - 2
"""The seeds of the third sample and the fourth are 0 and 1."""
PROMPT = "Once upon a time there was a"
DRAWN: dict[str, Any] = {"temperature": 1.0, "seed": SEED, "ignore_eos": True, "max_tokens": 160}
GREEDY: dict[str, Any] = {**DRAWN, "temperature": 0.0}
_TRIES = 10


@pytest.fixture(scope="module")
def pair(cluster: Cluster, models: Path, engine: str) -> Iterator[Cluster]:
    """Two nodes with an instance each of one deployment, which stay."""
    with two_instances(cluster, "sampled", models / "tiny-llama", engine, dtype="float32"):
        yield cluster


@pytest.fixture
async def client(pair: Cluster) -> AsyncIterator[sllm.AsyncClient]:
    """After each test nothing is left of what it has asked for."""
    async with sllm.AsyncClient(pair.control.address) as client:
        yield client
    await nothing_is_left(pair)


async def nothing_is_left(cluster: Cluster) -> None:
    """Neither in a worker, nor on a node, where it could wait for a reader."""

    async def nothing() -> bool:
        counters = [workers.status(socket).counters for socket in workers.sockets(cluster)]
        busy = any(one.running_requests or one.waiting_requests for one in counters)
        async with rpc.channel(cluster.control.address) as channel:
            request = cluster_pb.ListInstancesRequest()
            listed = await ClusterServiceStub(channel).ListInstances(request, timeout=10.0)
        kept = any(one.running_requests or one.unread_request_ids for one in listed.instances)
        return not (busy or kept)

    await assert_eventually(nothing, timeout=60.0)


async def alone(
    client: sllm.AsyncClient, options: Mapping[str, Any], prompt: str | None = PROMPT
) -> list[sllm.Choice]:
    """The samples, each asked for by itself when the one before has ended."""
    return [await one_of(client, choice, options, prompt) for choice in range(N)]


async def expected_of(client: sllm.AsyncClient, options: Mapping[str, Any]) -> list[sllm.Choice]:
    """The samples, each a request of its own; all at once, which takes less time."""
    each = (one_of(client, choice, options, PROMPT) for choice in range(N))
    return await asyncio.gather(*each)


async def one_of(
    client: sllm.AsyncClient, choice: int, options: Mapping[str, Any], prompt: str | None
) -> sllm.Choice:
    seed = (SEED + choice) % 2**64
    return (await client.complete("sampled", prompt, **{**options, "seed": seed})).choices[0]


def without_ids(choices: tuple[sllm.Choice, ...] | list[sllm.Choice]) -> list[Any]:
    """What is the same whatever the id of a request; calls of tools have ids of their own."""
    return [
        (
            one.token_ids,
            one.text,
            one.finish_reason,
            one.stop,
            one.reasoning,
            [call["function"] for call in one.tool_calls],
        )
        for one in choices
    ]


TALK: dict[str, Any] = {
    "messages": [{"role": "user", "content": "What is 1 + 1?"}],
    "tools": [
        {
            "type": "function",
            "function": {
                "name": "add",
                "parameters": {
                    "type": "object",
                    "properties": {"b": {"enum": ["x", "yy"]}},
                    "required": ["b"],
                    "additionalProperties": False,
                },
            },
        }
    ],
}
ASKED: dict[str, dict[str, Any]] = {
    "greedy": GREEDY,
    "drawn": DRAWN,
    "with logprobs": {**DRAWN, "logprobs": 3, "max_tokens": 24},
    "in a form": {**DRAWN, "structured_output": {"regex": "[a-c]{1,9}"}, "ignore_eos": False},
    "up to a stop": {**DRAWN, "stop": ["e", "th"], "min_tokens": 3},
    "calls": {**DRAWN, **TALK, "tool_choice": "required", "ignore_eos": False, "max_tokens": 60},
}


@by_turns("what", *ASKED)
async def test_samples_are_what_single_requests_give(client: sllm.AsyncClient, what: str) -> None:
    options = ASKED[what]
    prompt = None if "messages" in options else PROMPT
    expected = await alone(client, options, prompt)
    result = await client.complete("sampled", prompt, n=N, **options)
    assert without_ids(result.choices) == without_ids(expected)
    for one, other in zip(result.choices, expected, strict=True):
        assert (one.logprobs is None) == (other.logprobs is None)
        pairs = zip(one.logprobs or (), other.logprobs or (), strict=True)
        assert all(mine.logprob == pytest.approx(its.logprob, abs=1e-4) for mine, its in pairs)
    assert result.usage.completion_tokens == sum(len(one.token_ids) for one in expected)
    assert result.text == result.choices[0].text


async def started(stream: sllm.AsyncStream, each: int) -> dict[int, str]:
    """Reads until every sample has so many tokens; the ids that they are served by."""
    ids: dict[int, str] = {}
    seen = dict.fromkeys(range(N), 0)
    while min(seen.values()) < each:
        event = await stream.receive()
        assert event is not None, "it ended before"
        if isinstance(event, sllm.Started):
            ids[event.choice] = event.request_id
        if isinstance(event, sllm.Tokens):
            seen[event.choice] += len(event.token_ids)
    return ids


KINDS = {"greedy": GREEDY, "drawn": DRAWN}


@others_at_night
@pytest.mark.parametrize(("at", "kind"), paired(steps(1, 33, 80), list(KINDS)))
async def test_each_moves_at_any_step(client: sllm.AsyncClient, at: int, kind: str) -> None:
    options = {**KINDS[kind], "max_tokens": at + 120}
    expected = await expected_of(client, options)
    for _ in range(_TRIES):  # on a fast machine some end before their turn comes
        stream = client.generate("sampled", PROMPT, n=N, **options)
        ids = await started(stream, at)
        outcomes = [await move(client, ids[choice]) for choice in (1, 3)]
        result = await stream.result()
        assert without_ids(result.choices) == without_ids(expected)
        if outcomes == ["MOVED", "MOVED"]:
            break
    assert outcomes == ["MOVED", "MOVED"]
    assert {1, 3} <= {one.choice for one in result.migrations}


async def move(client: sllm.AsyncClient, request_id: str) -> str:
    with suppress(errors.RequestNotFound):
        return (await client.migrate(request_id=request_id)).requests[0].outcome
    return "ENDED"


@others_at_night
async def test_all_of_an_instance_move_with_it(client: sllm.AsyncClient, pair: Cluster) -> None:
    options = {**DRAWN, "max_tokens": 240}
    expected = await expected_of(client, options)
    stream = client.generate("sampled", PROMPT, n=N, **options)
    await started(stream, 8)
    instance = await busiest(client)
    await client.migrate(instance_id=instance.instance_id)
    result = await stream.result()
    assert without_ids(result.choices) == without_ids(expected)
    await asyncio.to_thread(pair.wait_for_instances, 2, "sampled")


@others_at_night
@pytest.mark.parametrize("kind", [pytest.param("greedy", marks=pytest.mark.nightly), "drawn"])
async def test_a_worker_that_is_killed_costs_no_token(
    client: sllm.AsyncClient, pair: Cluster, kind: str
) -> None:
    options = {**KINDS[kind], "max_tokens": 200}
    expected = await expected_of(client, options)
    stream = client.generate("sampled", PROMPT, n=N, **options)
    await started(stream, 5)
    instance = await busiest(client)
    await asyncio.to_thread(pair.signal_worker, instance.instance_id, signal.SIGKILL)
    result = await stream.result()
    assert without_ids(result.choices) == without_ids(expected)
    assert {one.reason for one in result.migrations} == {"FAILOVER"}
    await asyncio.to_thread(pair.wait_for_instances, 2, "sampled")


@others_at_night
@pytest.mark.parametrize("linger", [pytest.param(0.0, marks=pytest.mark.nightly), 60.0])
async def test_a_control_plane_that_is_restarted_costs_no_token(
    client: sllm.AsyncClient, pair: Cluster, linger: float
) -> None:
    options = {**DRAWN, "max_tokens": 240}
    expected = await expected_of(client, options)
    stream = client.generate("sampled", PROMPT, n=N, linger=linger, **options)
    await started(stream, 5)
    await asyncio.to_thread(pair.control.kill)
    await asyncio.to_thread(pair.control.restart)
    result = await stream.result()
    assert without_ids(result.choices) == without_ids(expected)
    assert result.usage.completion_tokens == sum(len(one.token_ids) for one in expected)
    await asyncio.to_thread(pair.wait_for_nodes, 2)
    await asyncio.to_thread(pair.wait_for_instances, 2, "sampled")


@pytest.mark.parametrize("each", [1, 40])
async def test_a_stream_that_breaks_is_read_on(client: sllm.AsyncClient, each: int) -> None:
    """Its samples end at different tokens, so that some have when it breaks."""
    options: dict[str, Any] = {**DRAWN, "stop": ["s"], "min_tokens": each, "linger": 60.0}
    expected = await expected_of(client, options)
    stream = client.generate("sampled", PROMPT, n=N, **options)
    await started(stream, each)
    stream._call.resume(stream._transcript)  # what follows a connection that was lost
    result = await stream.result()
    assert without_ids(result.choices) == without_ids(expected)


@others_at_night
async def test_a_slow_reader_gets_all(client: sllm.AsyncClient) -> None:
    options = {**DRAWN, "max_tokens": 60}
    expected = await expected_of(client, options)
    stream = client.generate("sampled", PROMPT, n=N, **options)
    async for event in stream:
        if isinstance(event, sllm.Tokens):
            await asyncio.sleep(0.02)
    assert without_ids((await stream.result()).choices) == without_ids(expected)


@pytest.mark.parametrize("way", ["cancel", "leave", "deadline"])
async def test_nothing_goes_on_of_what_nobody_wants(client: sllm.AsyncClient, way: str) -> None:
    endless: dict[str, Any] = {**DRAWN, "max_tokens": 480, "request_id": f"ends-by-{way}"}
    timeout = 1.0 if way == "deadline" else None
    stream = client.generate("sampled", PROMPT, n=32, timeout=timeout, **endless)
    if way == "leave":
        while not isinstance(await stream.receive(), sllm.Tokens):
            pass
        await stream.cancel()
        return
    if way == "cancel":
        while not isinstance(await stream.receive(), sllm.Tokens):
            pass
        await client.cancel(endless["request_id"])
    with suppress(errors.Cancelled, errors.DeadlineExceeded):
        await stream.result()


async def test_they_share_what_the_engine_keeps_of_their_prompt(client: sllm.AsyncClient) -> None:
    long = " ".join(["The prompt that all of them have"] * 16)
    first = await client.complete("sampled", long, n=N, **{**DRAWN, "max_tokens": 2})
    again = await client.complete("sampled", long, n=N, **{**DRAWN, "max_tokens": 2})
    assert again.usage.prompt_tokens == first.usage.prompt_tokens > 100
    assert again.usage.cached_prompt_tokens >= first.usage.cached_prompt_tokens


async def test_what_is_asked_of_a_node_by_itself_is_one_sample(pair: Cluster) -> None:
    async with grpc.aio.insecure_channel(pair.nodes[0].address) as channel:
        request = pb.GenerateRequest(request_id="direct", text="a", n=2)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await InferenceServiceStub(channel).Generate(request, timeout=30.0).read()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
