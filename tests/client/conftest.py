"""A control plane to talk to, and both clients behind one face."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import sllm
from tests.client.fake_control import FakeControl

Call = Callable[..., Any]
"""Calls a method of a client by its name: `call("deploy", "tiny", "/models/tiny")`."""
Collect = Callable[..., tuple[list[sllm.Event], sllm.Result]]
"""The events and the result of a generation with these arguments."""


@pytest.fixture
def control() -> Iterator[FakeControl]:
    fake = FakeControl()
    yield fake
    fake.stop()


@pytest.fixture(params=["sync", "async"])
def call(request: pytest.FixtureRequest, control: FakeControl) -> Call:
    if request.param == "sync":

        def call_sync(method: str, *args: Any, **kwargs: Any) -> Any:
            with sllm.Client(control.address) as client:
                return getattr(client, method)(*args, **kwargs)

        return call_sync

    def call_async(method: str, *args: Any, **kwargs: Any) -> Any:
        async def run() -> Any:
            async with sllm.AsyncClient(control.address) as client:
                return await getattr(client, method)(*args, **kwargs)

        return asyncio.run(run())

    return call_async


@pytest.fixture(params=["sync", "async"])
def collect(request: pytest.FixtureRequest, control: FakeControl) -> Collect:
    if request.param == "sync":

        def collect_sync(*args: Any, **kwargs: Any) -> tuple[list[sllm.Event], sllm.Result]:
            with sllm.Client(control.address) as client:
                stream = client.generate(*args, **kwargs)
                return list(stream), stream.result()

        return collect_sync

    def collect_async(*args: Any, **kwargs: Any) -> tuple[list[sllm.Event], sllm.Result]:
        async def run() -> tuple[list[sllm.Event], sllm.Result]:
            async with sllm.AsyncClient(control.address) as client:
                stream = client.generate(*args, **kwargs)
                return [event async for event in stream], await stream.result()

        return asyncio.run(run())

    return collect_async
