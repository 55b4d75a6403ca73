"""Named requests that come back: what one attempt leaves behind does not hit the next."""

import asyncio
from typing import Any

import pytest
from serverlessllm.v1 import inference_service_pb2 as pb

from sllm import errors
from sllm.gateway.attempts import Cancels
from sllm.gateway.context import Context, digest
from tests.client.fake_control import FakeControl, Silence
from tests.client.messages import generation
from tests.gateway.conftest import Open
from tests.gateway.raw import connected, head_of, post
from tests.support import assert_eventually

CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}
ASKED = post("/v1/chat/completions", {**CHAT, "stream": True}, "x-request-id: mine\r\n")
LAST = ASKED.replace(b"x-request-id", b"connection: close\r\nx-request-id")
ELSEWHERE = errors.Cancelled("request mine is read on elsewhere")


@pytest.mark.parametrize("said", [0, 4])
async def test_what_is_read_on_elsewhere_is_not_cancelled(
    control: FakeControl, url: str, said: int
) -> None:
    control.reply("Generate", *generation()[:said], ELSEWHERE)
    control.reply("Cancel", pb.CancelResponse())
    async with connected(url) as (reader, writer):
        writer.write(LAST)
        await asyncio.wait_for(reader.read(), 10)
    await _sees_no_cancel(control, url)


@pytest.mark.parametrize("failed", [errors.WorkerDied("it died"), errors.QueueFull("full")])
async def test_nor_what_fails(control: FakeControl, url: str, failed: errors.SllmError) -> None:
    control.reply("Generate", *generation()[:4], failed)
    async with connected(url) as (reader, writer):
        writer.write(LAST)
        await asyncio.wait_for(reader.read(), 10)
    await _sees_no_cancel(control, url)


async def test_the_end_of_one_names_it_and_not_the_next(control: FakeControl, opened: Open) -> None:
    """Its caller is gone, and has come back to another gateway before that was seen."""
    for _ in range(2):
        control.reply("Generate", *generation()[:4], Silence())
    control.reply("Cancel", pb.CancelResponse())
    here, there = await opened(), await opened()
    async with connected(here) as (_, first), connected(there) as (again, second):
        first.write(ASKED)
        await assert_eventually(lambda: len(control.requests["Generate"]) == 1)
        second.write(ASKED)
        await head_of(again)
        first.transport.abort()
        await assert_eventually(lambda: control.requests["Cancel"])
        (cancel,), (one, other) = control.requests["Cancel"], control.requests["Generate"]
        assert cancel.request_id == one.request_id == other.request_id
        assert cancel.attempt == one.attempt != other.attempt
        control.reply("Cancel", pb.CancelResponse())
    await assert_eventually(lambda: len(control.requests["Cancel"]) == 2)


async def _sees_no_cancel(control: FakeControl, url: str) -> None:
    """A later request has been answered, and there was none until then."""
    control.reply("Generate", *generation())
    async with connected(url) as (reader, writer):
        writer.write(post("/v1/chat/completions", CHAT, "connection: close\r\n"))
        await asyncio.wait_for(reader.read(), 10)
    assert not control.requests["Cancel"]


async def test_a_gateway_that_ends_waits_for_cancels_that_are_on_their_way() -> None:
    told: list[tuple[str, str]] = []
    go = asyncio.Event()

    async def cancel(request_id: str, attempt: str) -> None:
        await go.wait()
        told.append((request_id, attempt))

    cancels = Cancels(cancel)
    cancels.begin("a", "first")
    closing = asyncio.create_task(cancels.close())
    await asyncio.sleep(0)
    assert not closing.done()
    go.set()
    await closing
    assert told == [("a", "first")]


async def test_what_was_taken_with_one_that_is_refused_ends(control: FakeControl, url: str) -> None:
    """A named request of several prompts is taken whole: the rest of it is for nobody."""
    control.reply("Generate", *generation()[:4], Silence())
    control.reply("Cancel", pb.CancelResponse())
    control.reply("Generate", errors.QueueFull("full"))
    body = {"model": "tiny", "prompt": ["a", "b"]}
    async with connected(url) as (reader, writer):
        writer.write(post("/v1/completions", body, "x-request-id: mine\r\n"))
        assert " 429 " in await head_of(reader)
    await assert_eventually(lambda: control.requests["Cancel"])


def test_the_body_is_read_once_for_all_of_its_parts() -> None:
    context = Context("mine", True)
    ids = [context.generation_id(digest(body), part) for body in (b"a", b"b") for part in (0, 1)]
    assert len(set(ids)) == 4
    assert all(one.startswith("mine.") for one in ids)
