"""Calls of HTTP as calls of gRPC: bytes in, bytes out, at the pace of whoever reads."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import contextmanager
from typing import Any, Final

import grpc
from connectrpc.method import StreamType
from connectrpc.request import RequestContext
from connectrpc.server import Endpoint

from sllm import bounds, errors, rpc
from sllm.gateway.connect import failures
from sllm.gateway.connect.codecs import Encoded, from_wire
from sllm.gateway.connect.services import Method

_CARRIED: Final = ("traceparent", "tracestate", "baggage", "authorization")
"""Headers that go along as metadata."""

Context = RequestContext[Any, Any]


class Forwarder:
    """The way to one control plane. Its channel is made with the first call, and shared by all."""

    def __init__(self, control_address: str) -> None:
        self._address = control_address
        self._channel: grpc.aio.Channel | None = None

    async def close(self) -> None:
        """Ends the calls under way, and the channel."""
        if self._channel is not None:
            await self._channel.close(None)

    def endpoint(self, method: Method) -> Any:
        """What serves a method."""
        make: dict[StreamType, tuple[Callable[..., Any], Callable[..., Any]]] = {
            StreamType.UNARY: (Endpoint.unary, self._unary),
            StreamType.CLIENT_STREAM: (Endpoint.client_stream, self._client_stream),
            StreamType.SERVER_STREAM: (Endpoint.server_stream, self._server_stream),
        }
        kind, serve = make[method.stream_type]
        return kind(method=method.info(), function=serve(method))

    def _unary(self, method: Method) -> Callable[[Encoded, Context], Any]:
        async def serve(request: Encoded, context: Context) -> bytes:
            with self._told(method, context):
                wire = await request.to_wire(method.request)
                call = self._to_control().unary_unary(method.path)
                answer = await call(wire, **_options(context))
                return await from_wire(request.codec, answer, method.response)

        return serve

    def _server_stream(self, method: Method) -> Callable[[Encoded, Context], Any]:
        async def serve(request: Encoded, context: Context) -> AsyncGenerator[bytes]:
            with self._told(method, context):
                wire = await request.to_wire(method.request)
                call = self._to_control().unary_stream(method.path)(wire, **_options(context))
                try:
                    async for answer in call:
                        yield await from_wire(request.codec, answer, method.response)
                finally:
                    call.cancel()

        return serve

    def _client_stream(self, method: Method) -> Callable[[AsyncIterator[Encoded], Context], Any]:
        async def serve(requests: AsyncIterator[Encoded], context: Context) -> bytes:
            with self._told(method, context):
                call = self._to_control().stream_unary(method.path)(**_options(context))
                try:
                    codec = await _send_all(call, requests, method)
                    return await from_wire(codec, await call, method.response)
                finally:
                    call.cancel()

        return serve

    @contextmanager
    def _told(self, method: Method, context: Context) -> Any:
        try:
            with failures.told(method.path, self._address):
                yield
        except asyncio.CancelledError as error:
            if not _is_late(context):
                raise
            # The deadline has cancelled this: its caller is told in our words, with a reason.
            message = f"{method.path} had no end before its deadline"
            raise failures.to_connect(errors.DeadlineExceeded(message)) from error

    def _to_control(self) -> Any:
        if self._channel is None:
            self._channel = rpc.channel(self._address)
        return self._channel


async def _send_all(call: Any, requests: AsyncIterator[Encoded], method: Method) -> str:
    codec = ""
    async for request in requests:
        codec = request.codec
        await call.write(await request.to_wire(method.request))
        if call.done():  # the control plane has heard enough
            return codec
    await call.done_writing()
    return codec


def _options(context: Context) -> dict[str, Any]:
    metadata = [
        (key, context.request_headers[key]) for key in _CARRIED if key in context.request_headers
    ]
    left = context.timeout_ms
    timeout = None if left is None else min(max(left, 0.0) / 1000.0, bounds.LONGEST)
    return {"timeout": timeout, "metadata": metadata}


def _is_late(context: Context) -> bool:
    left = context.timeout_ms
    return left is not None and left <= 0.0
