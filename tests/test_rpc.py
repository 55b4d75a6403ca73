"""What every server here does with calls, whatever they ask for."""

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub
from serverlessllm.v1 import inference_service_pb2 as pb
from serverlessllm.v1.inference_service_pb2_grpc import InferenceServiceStub

import sllm
from sllm import errors, rpc, statuses
from tests.client.fake_control import FakeControl, Silence
from tests.client.messages import QUEUED

SERVICE = "tests.Echo"
Served = tuple["Echo", Any]
"""A server, and a channel to it."""
NO_MESSAGES = {"no UTF-8": b"\x0a\x02\xff\xfe", "cut off": b"\x0a\x05abc", "an open group": b"\x0b"}
HEADERS = 8 * 1024
"""Bytes of headers that clients take at most, unless they are told otherwise."""


class Echo:
    """A server with a method of each kind, which gives back what it is sent."""

    def __init__(self) -> None:
        self.server = rpc.Server()
        self.read: list[str] = []
        """Request ids of the messages that came."""
        message = (pb.CancelRequest.FromString, pb.CancelRequest.SerializeToString)
        handlers = {
            "Unary": grpc.unary_unary_rpc_method_handler(self._unary, *message),
            "Given": grpc.unary_stream_rpc_method_handler(self._given, *message),
            "Sent": grpc.stream_unary_rpc_method_handler(self._sent, *message),
            "Both": grpc.stream_stream_rpc_method_handler(self._both, *message),
        }
        handler = grpc.method_handlers_generic_handler(SERVICE, handlers)
        self.server.grpc.add_generic_rpc_handlers((handler,))

    async def _unary(self, request: pb.CancelRequest, context: Any) -> pb.CancelRequest:
        self.read.append(request.request_id)
        return request

    async def _given(self, request: pb.CancelRequest, context: Any) -> AsyncIterator[Any]:
        self.read.append(request.request_id)
        yield request

    async def _sent(self, requests: AsyncIterator[Any], context: Any) -> pb.CancelRequest:
        self.read += [request.request_id async for request in requests]
        return pb.CancelRequest()

    async def _both(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        async for request in requests:
            self.read.append(request.request_id)
            yield request


@pytest.fixture
async def echo() -> AsyncIterator[Served]:
    echo = Echo()
    port = await echo.server.start("127.0.0.1:0", [])
    async with rpc.channel(f"127.0.0.1:{port}") as channel:
        yield echo, channel
    await echo.server.stop(0)


async def _call(channel: Any, method: str, *encoded: bytes) -> list[bytes]:
    path = f"/{SERVICE}/{method}"
    if method == "Unary":
        return [await channel.unary_unary(path)(encoded[0])]
    if method == "Given":
        return [one async for one in channel.unary_stream(path)(encoded[0])]
    if method == "Sent":
        return [await channel.stream_unary(path)(iter(encoded))]
    return [one async for one in channel.stream_stream(path)(iter(encoded))]


@pytest.mark.parametrize("what", NO_MESSAGES)
@pytest.mark.parametrize("method", ["Unary", "Given", "Sent", "Both"])
async def test_what_is_no_message_is_the_callers_error(
    echo: Served, method: str, what: str, capfd: pytest.CaptureFixture[str]
) -> None:
    server, channel = echo
    with pytest.raises(errors.InvalidArgument, match="not a message"), rpc.typed_errors():
        await _call(channel, method, NO_MESSAGES[what])

    good = pb.CancelRequest(request_id="good").SerializeToString()
    answers = await _call(channel, method, good)
    assert server.read == ["good"]
    assert len(answers) == 1
    assert "Traceback" not in capfd.readouterr().err


async def test_a_stream_is_read_up_to_what_is_no_message(
    echo: Served,
) -> None:
    server, channel = echo
    good = pb.CancelRequest(request_id="good").SerializeToString()
    call = channel.stream_stream(f"/{SERVICE}/Both")()
    await call.write(good)
    assert await call.read() == good
    await call.write(NO_MESSAGES["cut off"])
    with pytest.raises(errors.InvalidArgument), rpc.typed_errors():
        await call.read()
    assert server.read == ["good"]


async def test_health_lists_every_service() -> None:
    server = FakeControl()
    async with rpc.channel(server.address) as channel:
        listed = await HealthStub(channel).List(health_pb2.HealthListRequest())
    server.stop()
    serving = health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)
    assert listed.statuses[""] == serving
    assert listed.statuses["serverlessllm.v1.ClusterService"] == serving


LONG = {
    "letters": "x" * 9_000,
    "umlauts": "ä" * 9_000,
    "words": "none of these " * 1_000,
    "a name of a file that is no UTF-8": "\udcff" * 3_000,
}


@pytest.mark.parametrize("what", LONG)
async def test_what_was_given_does_not_hide_the_error(what: str) -> None:
    """Whoever gets more headers than he takes reads RESOURCE_EXHAUSTED instead."""
    server, given = FakeControl(), LONG[what]
    message = f"no deployment {given!r}; list them"
    server.reply("Cancel", errors.DeploymentNotFound(message, metadata={"name": given}))

    async with rpc.channel(server.address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await InferenceServiceStub(channel).Cancel(pb.CancelRequest())
    server.stop()

    error = statuses.from_rpc_error(caught.value)
    assert type(error) is errors.DeploymentNotFound
    assert error.message.startswith("no deployment '")
    assert error.message.endswith("; list them")
    trailers = caught.value.trailing_metadata()
    encoded = sum(len(key) + len(value) * 4 / 3 for key, value in trailers)
    assert encoded + 3 * len(error.message.encode()) < HEADERS


async def test_many_calls_at_once_are_all_served(echo: Served) -> None:
    _, channel = echo
    calls = [channel.unary_unary(f"/{SERVICE}/Unary")(b"") for _ in range(5_000)]
    assert await asyncio.gather(*calls) == [b""] * 5_000


PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")


@pytest.mark.parametrize("variable", PROXIES)
async def test_calls_within_a_cluster_go_by_no_proxy(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for one in (*PROXIES, "no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(one, raising=False)
    monkeypatch.setenv(variable, "http://127.0.0.1:1")
    server = FakeControl()
    server.reply("Cancel", pb.CancelResponse())
    server.reply("Cancel", pb.CancelResponse())

    async with rpc.channel(server.address) as channel:
        await InferenceServiceStub(channel).Cancel(pb.CancelRequest())
    async with sllm.AsyncClient(server.address) as client:
        await client.cancel("r-1")
    server.stop()


async def test_probes_are_told_of_services_and_nothing_else() -> None:
    """On a port of their own, without certificates: names of deployments are not for everybody."""
    server = rpc.Server()
    service = health_pb2.DESCRIPTOR.services_by_name["Health"]
    await server.start("127.0.0.1:0", [service])
    await server.set_serving("a-deployment", True)
    port = await server.serve_probes(0)
    async with rpc.channel(f"127.0.0.1:{port}") as channel:
        stub = HealthStub(channel)
        for name in ("", service.full_name):
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        await server.set_serving("", False)
        answer = await stub.Check(health_pb2.HealthCheckRequest())
        assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
        for call, code in (
            (stub.Check(health_pb2.HealthCheckRequest(service="a-deployment")), "NOT_FOUND"),
            (stub.List(health_pb2.HealthListRequest()), "UNIMPLEMENTED"),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call
            assert refused.value.code().name == code
    await server.stop(0)
    assert not await rpc.is_serving(f"127.0.0.1:{port}", "")


def test_channels_are_made_with_the_options_of_all() -> None:
    """One made elsewhere would ask the environment's proxies for the way into the cluster."""
    package = Path(rpc.__file__).parent
    making = re.compile(r"\b(in)?secure_channel\(")
    found = {path.name for path in package.rglob("*.py") if making.search(path.read_text())}
    # etcd's client is none of grpc.aio: its channels have options of their own, without a proxy.
    assert found == {"rpc.py", "credentials.py", "cluster.py", "client.py"}
    assert all(
        ("grpc.enable_http_proxy", 0) in options
        for options in (rpc.CHANNEL_OPTIONS, rpc.PROCESS_OPTIONS)
    )


async def test_a_quiet_stream_outlives_the_pings_of_its_client() -> None:
    """gRPC's own servers end it at the third: GOAWAY, too_many_pings."""
    server = FakeControl()
    server.reply("Generate", QUEUED, Silence())
    pinging = [("grpc.keepalive_time_ms", 1_000), ("grpc.http2.max_pings_without_data", 0)]
    async with grpc.aio.insecure_channel(server.address, options=pinging) as channel:
        call = InferenceServiceStub(channel).Generate(pb.GenerateRequest())
        assert await call.read() == QUEUED
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(call.read(), 5.0)
    server.stop()


class Transport(grpc.GenericRpcHandler):
    """Answers every call with a status that is not ours, as a proxy does or gRPC itself."""

    def __init__(self, code: grpc.StatusCode) -> None:
        self._code = code
        self.server = grpc.aio.server()
        self.server.add_generic_rpc_handlers((self,))

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        """See grpc.GenericRpcHandler."""
        streams = details.method.endswith("Generate")
        return (
            grpc.unary_stream_rpc_method_handler(self._refuse)
            if streams
            else grpc.unary_unary_rpc_method_handler(self._refuse)
        )

    async def _refuse(self, request: bytes, context: Any) -> None:
        await context.abort(self._code, "said between")


TAKEN_FOR = {
    grpc.StatusCode.CANCELLED: errors.Unreachable,
    grpc.StatusCode.UNAVAILABLE: errors.Unreachable,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.DeadlineExceeded,
    grpc.StatusCode.UNIMPLEMENTED: errors.NotServed,
}
"""Codes that mean the same whoever says them; the others are nobody's of ours."""


@pytest.mark.parametrize("code", [one for one in grpc.StatusCode if one.name != "OK"], ids=str)
async def test_a_status_of_the_transport_is_not_taken_for_ours(code: grpc.StatusCode) -> None:
    transport = Transport(code)
    port = transport.server.add_insecure_port("127.0.0.1:0")
    await transport.server.start()
    expected = TAKEN_FOR.get(code, errors.Internal)
    async with sllm.AsyncClient(f"127.0.0.1:{port}") as client:
        for call in (client.cancel("r-1"), client.complete("tiny", "Once")):
            with pytest.raises(expected, match=r"said between|before the deadline") as caught:
                await call
            assert type(caught.value) is expected
    await transport.server.stop(0)


async def test_a_request_that_is_too_large_is_the_callers_error() -> None:
    server = FakeControl()
    async with sllm.AsyncClient(server.address) as client:
        with pytest.raises(errors.InvalidArgument, match="larger than a message may be"):
            await client.complete("tiny", "x" * (rpc.MAX_MESSAGE_BYTES + 1))
    server.stop()
