"""A caller that leaves a stream, in whichever way, ends the call."""

import asyncio
import gc
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

import sllm
from sllm import errors
from tests.client.fake_control import FakeControl, Silence
from tests.client.messages import QUEUED
from tests.support import assert_eventually, wait_until


@pytest.fixture
def client(control: FakeControl) -> sllm.Client:
    control.reply("Generate", QUEUED, Silence())
    return sllm.Client(control.address)


def test_cancel(control: FakeControl, client: sllm.Client) -> None:
    stream = client.generate("tiny", "Once")
    next(stream)
    stream.cancel()

    wait_until(lambda: control.abandoned == ["Generate"])
    with pytest.raises(errors.Cancelled):
        next(stream)


def test_cancel_while_another_thread_waits(control: FakeControl, client: sllm.Client) -> None:
    stream = client.generate("tiny", "Once")
    next(stream)
    canceller = threading.Timer(0.1, stream.cancel)
    canceller.start()

    with pytest.raises(errors.Cancelled):
        stream.result()
    canceller.join()


def test_leaving_the_context(control: FakeControl, client: sllm.Client) -> None:
    with client.generate("tiny", "Once") as stream:
        next(stream)

    wait_until(lambda: control.abandoned == ["Generate"])


def test_dropping_the_stream(control: FakeControl, client: sllm.Client) -> None:
    for _ in client.generate("tiny", "Once"):
        break
    gc.collect()

    wait_until(lambda: control.abandoned == ["Generate"])


def test_dropping_the_stream_before_its_first_event(control: FakeControl) -> None:
    control.reply("Generate", Silence())
    client = sllm.Client(control.address)
    stream = client.generate("tiny", "Once")
    wait_until(lambda: control.requests["Generate"])
    del stream
    gc.collect()

    wait_until(lambda: control.abandoned == ["Generate"])


def test_closing_the_client(control: FakeControl, client: sllm.Client) -> None:
    stream = client.generate("tiny", "Once")
    next(stream)
    client.close()

    wait_until(lambda: control.abandoned == ["Generate"])
    with pytest.raises(RuntimeError, match="closed"):
        next(stream)


def test_a_deadline_that_passes(control: FakeControl, client: sllm.Client) -> None:
    with pytest.raises(errors.DeadlineExceeded, match=control.address):
        client.complete("tiny", "Once", timeout=0.3)

    # Unless it came too late to be taken.
    wait_until(lambda: len(control.abandoned) == len(control.requests["Generate"]))


async def test_cancelling_the_reading_task(control: FakeControl) -> None:
    control.reply("Generate", QUEUED, Silence())
    async with sllm.AsyncClient(control.address) as client:
        task = asyncio.create_task(client.complete("tiny", "Once"))
        await assert_eventually(lambda: control.requests["Generate"])
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

        await assert_eventually(lambda: control.abandoned == ["Generate"])


async def test_cancelling_the_reading_task_and_the_stream(control: FakeControl) -> None:
    control.reply("Generate", QUEUED, Silence())
    async with sllm.AsyncClient(control.address) as client:
        stream = client.generate("tiny", "Once")
        await anext(stream)
        task = asyncio.create_task(stream.receive())
        await asyncio.sleep(0)  # it reads
        task.cancel()
        await stream.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


@pytest.mark.parametrize("method", ["nodes", "complete", "watch"])
async def test_closing_the_client_under_another_task(control: FakeControl, method: str) -> None:
    """Which nobody has cancelled, and which is told so."""
    for name in ("ListNodes", "Generate", "WatchCluster"):
        control.reply(name, Silence())
    client = sllm.AsyncClient(control.address)
    works: dict[str, Callable[[], Coroutine[Any, Any, object]]] = {
        "nodes": client.nodes,
        "complete": lambda: client.complete("tiny", "Once"),
        "watch": client.watch().__anext__,
    }
    waiting = asyncio.ensure_future(works[method]())
    await assert_eventually(lambda: any(control.requests.values()))
    await client.close()
    with pytest.raises(errors.Cancelled, match="was closed"):
        await waiting


async def test_leaving_an_asynchronous_context(control: FakeControl) -> None:
    control.reply("Generate", QUEUED, Silence())
    async with sllm.AsyncClient(control.address) as client:
        async with client.generate("tiny", "Once") as stream:
            await anext(stream)

        await assert_eventually(lambda: control.abandoned == ["Generate"])
        with pytest.raises(errors.Cancelled):
            await stream.result()


async def test_dropping_an_asynchronous_stream(control: FakeControl) -> None:
    control.reply("Generate", QUEUED, Silence())
    async with sllm.AsyncClient(control.address) as client:
        async for _ in client.generate("tiny", "Once"):
            break
        gc.collect()

        await assert_eventually(lambda: control.abandoned == ["Generate"])
