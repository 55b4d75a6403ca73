"""A tenant that calls on and on: what its refusals cost, and that it is let in when it has room."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
import structlog
from serverlessllm.v1 import deployment_service_pb2 as deployment_pb

import sllm
from sllm import errors, rpc
from sllm.control.tenants import refusals
from tests.control.access.test_tenants import Shared, shared
from tests.control.clusters import Caller

__all__ = ["shared"]
SECONDS = 20.0
CALLERS = 10
GUESSES = 30


class Raw:
    """Calls whose messages are none: whoever reads them says so."""

    def __init__(self, channel: grpc.aio.Channel, secret: str) -> None:
        self._call: Any = channel.unary_stream("/serverlessllm.v1.InferenceService/Generate")
        self._metadata = [("authorization", f"Bearer {secret}")]

    async def refused(self, timeout: float = SECONDS) -> errors.SllmError:
        with pytest.raises(errors.SllmError) as caught, rpc.typed_errors():
            await self._call(b"\xff", metadata=self._metadata, timeout=timeout).read()
        return caught.value


@pytest.fixture(autouse=True)
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few refusals are many: this machine may be busy."""
    monkeypatch.setattr(refusals, "_AT_ONCE", 5)
    monkeypatch.setattr(refusals, "_A_SECOND", 10.0)


@asynccontextmanager
async def flooded_by(client: sllm.AsyncClient) -> AsyncIterator[Counter[str]]:
    """Callers who call again whenever they are refused, and what they are told."""
    told, ends = Counter[str](), asyncio.Event()

    async def call() -> None:
        while not ends.is_set():
            try:
                await client.complete("llama", "more", timeout=SECONDS)
            except errors.SllmError as error:
                told[error.reason if error.retry_after else "NOT_TOLD_WHEN"] += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(CALLERS):
            group.create_task(call())
        try:
            yield told
        finally:
            ends.set()


async def until_unread(raw: Raw) -> errors.SllmError:
    while not isinstance(refusal := await raw.refused(), errors.TenantLimit):
        assert isinstance(refusal, errors.InvalidArgument)
    return refusal


async def test_what_floods_is_refused_unread_until_it_has_room_again(shared: Shared) -> None:
    await shared.admin.set_tenant("acme", sllm.TenantLimits(requests=1))
    await shared.acme.deploy("llama", "file:///models/a")
    shared.node.script.before_finish.shut()
    async with rpc.channel(shared.address) as channel, shared.acme.generate("llama", "x") as stream:
        await stream.receive()
        raw = Raw(channel, shared.secrets["acme"])
        assert isinstance(await raw.refused(), errors.InvalidArgument)  # a slow one is read
        async with flooded_by(shared.acme) as told, asyncio.timeout(SECONDS):
            refusal = await until_unread(raw)
            assert refusal.metadata["limit"] == "requests"
            assert refusal.retry_after
            calm = Raw(channel, shared.secrets["zebra"])
            assert isinstance(await calm.refused(), errors.InvalidArgument)
        assert told.keys() == {"TENANT_LIMIT"}
        shared.node.script.before_finish.open()
        await stream.result()
        async with asyncio.timeout(SECONDS):  # a moment after the caller, the router knows
            while isinstance(await raw.refused(), errors.TenantLimit):
                pass
    assert (await shared.acme.complete("llama", "x")).finish_reason


async def test_a_refusal_does_not_come_after_its_callers_deadline(shared: Shared) -> None:
    await shared.admin.set_tenant("acme", sllm.TenantLimits(requests=0))
    await shared.acme.deploy("llama", "file:///models/a")
    async with rpc.channel(shared.address) as channel, flooded_by(shared.acme):
        raw = Raw(channel, shared.secrets["acme"])
        async with asyncio.timeout(SECONDS):
            await until_unread(raw)
        assert isinstance(await raw.refused(timeout=1.5), errors.TenantLimit)


async def test_calls_of_any_kind_are_bounded_by_the_second(shared: Shared) -> None:
    await shared.admin.set_tenant("acme", sllm.TenantLimits(calls_per_second=0.001))
    assert await shared.acme.deployments() == []
    with pytest.raises(errors.TenantLimit, match=r"0\.001 calls a second") as caught:
        await shared.acme.deployments()
    assert caught.value.metadata["limit"] == "calls_per_second"
    assert caught.value.retry_after
    await shared.zebra.deployments()
    await shared.admin.deployments()
    await shared.admin.set_tenant("acme", sllm.TenantLimits())
    await shared.acme.deployments()


async def test_wrong_keys_are_refused_in_turn_and_told_in_sums(shared: Shared) -> None:
    async with rpc.channel(shared.address) as channel:
        deployments = Caller(channel).deployments

        async def guess(number: int) -> None:
            metadata = [("authorization", f"Bearer sllm_{number}")]
            request = deployment_pb.DeployRequest(name="llama")
            with pytest.raises(errors.Unauthenticated), rpc.typed_errors():
                await deployments.Deploy(request, metadata=metadata, timeout=SECONDS)

        with structlog.testing.capture_logs() as logs:
            await asyncio.gather(*map(guess, range(GUESSES)))
    lines = Counter(line["event"] for line in logs)
    assert lines["audit"] < GUESSES
    assert lines["access.flooded"] == 1
