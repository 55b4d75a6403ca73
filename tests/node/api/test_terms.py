"""A node obeys the control plane that leads, and no other: over the wire, every call."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from serverlessllm.v1 import inference_service_pb2 as inference_pb
from serverlessllm.v1 import node_service_pb2 as pb
from serverlessllm.v1.inference_service_pb2_grpc import add_InferenceServiceServicer_to_server
from serverlessllm.v1.node_service_pb2_grpc import add_NodeServiceServicer_to_server

from sllm import errors, rpc
from sllm.clock import MonotonicClock
from sllm.control.wire.node_client import Node
from sllm.control.wire.node_messages import StopOrder
from sllm.node.api.inference_service import InferenceServicer
from sllm.node.api.node_service import NodeServicer
from sllm.node.api.terms import ObeysLatest, Terms
from sllm.tls.identity import Role
from tests.support import assert_eventually
from tests.tls.certs import Certs, dial_with

SECONDS = 10.0
_SERVICE = pb.DESCRIPTOR.services_by_name["NodeService"]


ORDERING = [_SERVICE.full_name, "serverlessllm.v1.InferenceService"]


class Endless:
    """Generations that never end by themselves."""

    def __init__(self) -> None:
        self.reading: list[str] = []
        self.cancelled: list[str] = []

    async def read(
        self, request: inference_pb.GenerateRequest
    ) -> AsyncGenerator[inference_pb.GenerateResponse]:
        self.reading.append(request.request_id)
        try:
            yield inference_pb.GenerateResponse(started=inference_pb.Started())
            await asyncio.Event().wait()
        finally:
            self.reading.remove(request.request_id)

    def cancel(self, request_id: str, attempt: str = "") -> None:
        self.cancelled.append(request_id)


class Leader:
    """An `Authority` that does not notice that others lead."""

    def __init__(self, term: int | None) -> None:
        self._term = term
        self.told: list[str] = []

    def term(self) -> int | None:
        return self._term

    def refused(self, error: errors.StaleTerm) -> None:
        self.told.append(error.metadata["term"])


class Served:
    """A node's own servicers; what stands behind them is not reached by calls that are refused."""

    def __init__(self, *before: grpc.aio.ServerInterceptor) -> None:
        self.generations = Endless()
        self.server = rpc.Server(within=[ObeysLatest(terms := Terms(), ORDERING)], before=before)
        behind: Any = self.generations
        agent: Any = None
        node = NodeServicer(agent, behind, "n1", MonotonicClock(), terms)
        add_NodeServiceServicer_to_server(node, self.server.grpc)
        add_InferenceServiceServicer_to_server(InferenceServicer(behind), self.server.grpc)

    async def start(self) -> None:
        self.address = f"127.0.0.1:{await self.server.start('127.0.0.1:0', [])}"

    def of(self, leader: Leader) -> Node:
        """The node, as a control plane knows it."""
        at: Any = type("Facts", (), {"node_id": "n1", "address": self.address})
        return Node(at, authority=leader)


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    served = Served()
    await served.start()
    yield served
    await served.server.stop(0)


async def called(address: str, method: Any, term: int | None) -> str:
    """The reason that a call of NodeService is refused with; empty if it is not."""
    path = f"/{_SERVICE.full_name}/{method.name}"
    async with rpc.channel(address) as channel:
        begin: Any = channel.stream_stream(path)
        call = begin(iter([b""]), metadata=rpc.order_metadata(term), timeout=SECONDS)
        try:
            with rpc.typed_errors():
                await call.read()
        except errors.StaleTerm:
            return "STALE_TERM"
        except errors.SllmError:
            return "OTHER"
        finally:
            call.cancel()
    return ""


@pytest.mark.parametrize("method", list(_SERVICE.methods), ids=lambda method: method.name)
async def test_every_order_of_who_led_before_is_refused(served: Served, method: Any) -> None:
    assert await called(served.address, method, None) != "STALE_TERM", "nobody has said a term yet"
    assert await called(served.address, method, 5) != "STALE_TERM"
    assert await called(served.address, method, 4) == "STALE_TERM"
    assert await called(served.address, method, None) == "STALE_TERM"
    assert await called(served.address, method, 5) != "STALE_TERM"
    assert await called(served.address, method, 6) != "STALE_TERM"


async def test_who_led_before_is_told_so_and_ends_nothing(served: Served) -> None:
    former, now = Leader(1), Leader(2)
    first, second = served.of(former), served.of(now)
    try:
        await second.cancel("mine")
        with pytest.raises(errors.NotLeader, match="another control plane leads"):
            await first.cancel("mine too")
        with pytest.raises(errors.NotLeader):
            await first.stop_instance("i", StopOrder(0.0))
        assert former.told == ["2", "2"]
        assert served.generations.cancelled == ["mine"]
    finally:
        await first.close()
        await second.close()


async def test_a_new_leader_ends_the_streams_of_the_former(served: Served) -> None:
    """Its calls are left as by a reader who may come again: the new leader's callers do."""
    former = Leader(1)
    first, second = served.of(former), served.of(Leader(2))
    try:
        call = first.generate(inference_pb.GenerateRequest(request_id="r"), None, {})
        assert (await anext(call)).HasField("started")
        await second.cancel("other")
        with pytest.raises(errors.NotLeader):
            await anext(call)
        await assert_eventually(lambda: not served.generations.reading)
        with pytest.raises(errors.NotLeader):
            await anext(first.generate(inference_pb.GenerateRequest(request_id="r"), None, {}))
        again = second.generate(inference_pb.GenerateRequest(request_id="r"), None, {})
        assert (await anext(again)).HasField("started")
    finally:
        await first.close()
        await second.close()


async def test_who_knows_that_it_leads_no_more_calls_nobody(served: Served) -> None:
    class Deposed(Leader):
        def term(self) -> int | None:
            raise errors.NotLeader("leads no more")

    node = served.of(Deposed(1))
    try:
        with pytest.raises(errors.NotLeader):
            await node.cancel("r")
        with pytest.raises(errors.NotLeader):
            await anext(node.generate(inference_pb.GenerateRequest(request_id="r"), None, {}))
        assert not served.generations.reading
    finally:
        await node.close()


async def test_a_term_that_is_no_number_is_refused(served: Served) -> None:
    async with rpc.channel(served.address) as channel:
        stop: Any = channel.unary_unary(f"/{_SERVICE.full_name}/StopInstance")
        call = stop(b"", metadata=((rpc.TERM_HEADER, "first"),), timeout=SECONDS)
        with pytest.raises(errors.InvalidArgument, match="no number"), rpc.typed_errors():
            await call


async def test_a_term_of_whoever_may_give_no_orders_deposes_nobody(tmp_path: Path) -> None:
    """Neither a gateway's nor a node's, nor one beside a call that anybody may make."""
    certs, (method, *_) = Certs(tmp_path), _SERVICE.methods
    tls = certs.tls(Role.NODE)
    guarded = Served(tls.guard({_SERVICE.full_name: (Role.CONTROL,)}))
    port = await guarded.server.start("127.0.0.1:0", [], credentials=tls.for_peers())
    paths = (f"/{_SERVICE.full_name}/{method.name}", "/grpc.health.v1.Health/Check", "/no/thing")
    late = rpc.order_metadata(999)
    try:
        for role in (Role.GATEWAY, Role.METRICS, Role.NODE):
            dial = dial_with(certs.of(role), certs.authority, Role.NODE)
            async with dial(f"127.0.0.1:{port}") as channel:
                for path in paths:
                    ask: Any = channel.stream_stream(path)
                    with suppress(grpc.aio.AioRpcError):
                        await ask(iter([b""]), metadata=late, timeout=SECONDS).read()
        dial = dial_with(certs.of(Role.CONTROL), certs.authority, Role.NODE)
        async with dial(f"127.0.0.1:{port}") as channel:
            ask = channel.stream_stream(paths[0])
            call = ask(iter([b""]), metadata=rpc.order_metadata(1), timeout=SECONDS)
            with suppress(grpc.aio.AioRpcError):
                await call.read()
            assert "STALE_TERM" not in str(await call.details())
            assert "999" not in str(await call.details())
    finally:
        await guarded.server.stop(0)


@pytest.mark.parametrize("term", ["9" * 5000, "1" * 19, "x", "-1", "1.5"])
async def test_what_is_no_term_is_refused(served: Served, term: str) -> None:
    (method, *_) = _SERVICE.methods
    async with rpc.channel(served.address) as channel:
        ask: Any = channel.stream_stream(f"/{_SERVICE.full_name}/{method.name}")
        metadata = grpc.aio.Metadata((rpc.TERM_HEADER, term))
        with pytest.raises(errors.InvalidArgument, match="is no number"), rpc.typed_errors():
            await ask(iter([b""]), metadata=metadata, timeout=SECONDS).read()
