"""A gateway in the test's own loop, before a control plane that says what it is told to."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any

import httpx2
import openai
import pytest
from serverlessllm.v1 import tenant_service_pb2 as pb

from sllm.gateway.server import running
from sllm.gateway.settings import GatewaySettings
from tests.client.fake_control import FakeControl

Open = Callable[..., Awaitable[str]]
"""Starts a gateway with these settings; gives its URL."""


@pytest.fixture
def control() -> Iterator[FakeControl]:
    fake = FakeControl()
    asked = pb.ListTenantsResponse(caller_tenant="default", caller_sees_all=True)
    fake.always["ListTenants"] = [asked]  # which asks nobody for a key
    yield fake
    fake.stop()


@pytest.fixture
async def opened(control: FakeControl) -> AsyncIterator[Open]:
    async with AsyncExitStack() as stack:

        async def start(**settings: Any) -> str:
            given = {"controls": (control.address,), "stop_seconds": 0.2, **settings}
            address = await stack.enter_async_context(running(GatewaySettings(port=0, **given)))
            return f"http://{address}"

        yield start


@pytest.fixture
async def url(opened: Open) -> str:
    return await opened()


@pytest.fixture
async def http(url: str) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(base_url=url) as client:
        yield client


@pytest.fixture
async def client(url: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client
