"""Streams: kept alive while nothing comes, ended with their caller, as slow as their reader."""

import asyncio
import json
from typing import Any

import openai
import pytest
from serverlessllm.v1 import inference_service_pb2 as pb

from sllm import errors
from tests.client.fake_control import FakeControl, Silence
from tests.client.messages import LOADING, QUEUED, finished, generation, tokens
from tests.gateway.conftest import Open
from tests.gateway.raw import connected, head_of, post
from tests.support import assert_eventually

CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}
STREAMED = {**CHAT, "stream": True}
DROP = errors.WorkerDied("it died")


async def test_a_cold_start_is_told_in_comments(control: FakeControl, opened: Open) -> None:
    control.reply("Generate", QUEUED, LOADING, Silence())
    url = await opened(hold_seconds=0.05, pulse_seconds=0.05)
    async with connected(url) as (reader, writer):
        writer.write(post("/v1/chat/completions", STREAMED))
        assert "200 OK" in await head_of(reader)
        told = await asyncio.wait_for(reader.readuntil(b"SSD\n\n"), 10)
        assert b": loading: READ 1 B of 4 B from SSD" in told
        await asyncio.wait_for(reader.readuntil(b": loading"), 10)


async def test_what_fails_before_anything_was_said_has_its_status(
    control: FakeControl, client: openai.AsyncOpenAI
) -> None:
    control.reply("Generate", QUEUED, errors.StartFailed("no room", retry_after=7.2))
    with pytest.raises(openai.InternalServerError) as caught:
        await client.chat.completions.create(**STREAMED)
    assert (caught.value.status_code, caught.value.code) == (503, "START_FAILED")
    assert caught.value.response.headers["retry-after"] == "8"


async def test_what_fails_later_ends_the_stream(
    control: FakeControl, client: openai.AsyncOpenAI
) -> None:
    control.reply("Generate", *generation()[:4], DROP)
    stream = await client.chat.completions.create(**STREAMED)
    with pytest.raises(openai.APIError) as caught:
        async for _ in stream:
            pass
    assert caught.value.code == "WORKER_DIED"


@pytest.mark.parametrize("body", [CHAT, STREAMED], ids=["whole", "streamed"])
@pytest.mark.parametrize("said", [0, 4])
async def test_a_caller_that_leaves_ends_its_generation(
    control: FakeControl, url: str, body: dict[str, Any], said: int
) -> None:
    control.reply("Generate", *generation()[:said], Silence())
    async with connected(url) as (_, writer):
        writer.write(post("/v1/chat/completions", body))
        await assert_eventually(lambda: control.requests["Generate"])
        assert not control.abandoned
    await assert_eventually(lambda: control.abandoned == ["Generate"])


async def test_one_that_the_caller_has_named_is_ended_as_well(
    control: FakeControl, url: str
) -> None:
    """It would go on by itself: that is for a gateway that is lost."""
    control.reply("Generate", *generation()[:4], Silence())
    control.reply("Cancel", pb.CancelResponse())
    async with connected(url) as (_, writer):
        writer.write(post("/v1/chat/completions", STREAMED, "x-request-id: mine\r\n"))
        await assert_eventually(lambda: control.requests["Generate"])
        (request,) = control.requests["Generate"]
        assert request.linger.seconds == 30
    await assert_eventually(lambda: control.requests["Cancel"])
    assert control.requests["Cancel"][0].request_id == request.request_id


async def test_who_comes_back_asks_for_the_same_again(
    control: FakeControl, client: openai.AsyncOpenAI
) -> None:
    bodies = [CHAT, CHAT, {**CHAT, "max_tokens": 3}]
    for body in bodies:
        control.reply("Generate", *generation())
        answer = await client.chat.completions.create(
            **body, extra_headers={"x-request-id": "mine"}
        )
        assert answer._request_id == "mine"
    first, again, other = control.requests["Generate"]
    assert first.request_id == again.request_id != other.request_id
    assert first.request_id.startswith("mine.")
    assert first.sampling.seed == again.sampling.seed
    assert all(one.resume_from_sequence == 0 for one in (first, again))
    assert all(one.HasField("resume_from_sequence") for one in (first, again, other))


async def test_when_the_gateway_goes_down_what_is_named_goes_on(
    control: FakeControl, opened: Open
) -> None:
    from sllm.gateway.server import running
    from sllm.gateway.settings import GatewaySettings

    control.reply("Generate", *generation()[:4], Silence())
    settings = GatewaySettings((control.address,), port=0, stop_seconds=0.05)
    async with asyncio.TaskGroup() as group:
        async with running(settings) as address:
            asked = post("/v1/chat/completions", STREAMED, "x-request-id: mine\r\n")
            reading = group.create_task(_read_all(f"http://{address}", asked))
            await assert_eventually(lambda: control.requests["Generate"])
        said = await reading
    assert "SHUTTING_DOWN" in said
    assert control.abandoned == ["Generate"]
    assert not control.requests["Cancel"]


async def _read_all(url: str, asked: bytes) -> str:
    async with connected(url) as (reader, writer):
        writer.write(asked)
        return (await reader.read()).decode()


def _long(count: int) -> list[pb.GenerateResponse]:
    text = "x" * 1000
    return [
        QUEUED,
        *(tokens(1 + index, index, 7, text=text) for index in range(count)),
        finished(1 + count),
    ]


async def test_a_slow_reader_slows_nobody_and_fills_no_memory(
    control: FakeControl, url: str, client: openai.AsyncOpenAI
) -> None:
    control.reply("Generate", *_long(30_000))
    async with connected(url) as (reader, writer):
        writer.write(post("/v1/chat/completions", STREAMED))
        await head_of(reader)  # and no more: 30 MB are on their way
        control.reply("Generate", *_long(50))
        stream = await client.chat.completions.create(**STREAMED)
        assert len([chunk async for chunk in stream]) == 52
        assert not control.abandoned
    await assert_eventually(lambda: control.abandoned == ["Generate"])


async def test_control_planes_are_asked_in_turn(control: FakeControl, opened: Open) -> None:
    url = await opened(controls=("127.0.0.1:1", control.address))
    for _ in range(2):
        control.reply("Generate", *generation())
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
            answer = await client.chat.completions.create(**CHAT)
        assert answer.choices[0].message.content == "Once upon"


async def test_no_control_plane_is_told(opened: Open) -> None:
    url = await opened(controls=("127.0.0.1:1", "127.0.0.1:2"))
    async with connected(url) as (reader, writer):
        writer.write(post("/v1/chat/completions", CHAT))
        head = await head_of(reader)
        assert "503" in head
        assert "retry-after: 1" in head
        length = int(head.partition("content-length: ")[2].split()[0])
        assert json.loads(await reader.readexactly(length))["error"]["code"] == "UNREACHABLE"


async def test_nothing_is_left_of_requests(control: FakeControl, url: str) -> None:
    """Whichever way they have ended."""
    ends: list[list[Any]] = [
        generation(),
        [*generation()[:4], DROP],
        [errors.QueueFull("full")],
        [*generation()[:4], Silence()],
        [Silence()],
    ]
    before = asyncio.all_tasks()
    for end in ends:
        for body in (CHAT, STREAMED):
            control.reply("Generate", *end)
            count = len(control.requests["Generate"])
            async with connected(url) as (reader, writer):
                writer.write(post("/v1/chat/completions", body, "connection: close\r\n"))
                await assert_eventually(lambda: len(control.requests["Generate"]) > count)  # noqa: B023
                if not isinstance(end[-1], Silence):
                    await asyncio.wait_for(reader.read(), 10)
    await assert_eventually(lambda: len(control.abandoned) == 4)
    await assert_eventually(lambda: not _of_requests(asyncio.all_tasks() - before))


def _of_requests(tasks: set[asyncio.Task[Any]]) -> list[asyncio.Task[Any]]:
    return [task for task in tasks if "AioServer" not in repr(task)]
