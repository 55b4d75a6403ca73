"""Calls of HTTP as calls of gRPC: bytes in, bytes out, at the pace of whoever reads."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

import grpc
from connectrpc.errors import ConnectError
from connectrpc.method import StreamType
from connectrpc.request import RequestContext
from connectrpc.server import Endpoint

from sllm import bounds, errors, sending
from sllm.gateway.connect import failures
from sllm.gateway.connect.codecs import Encoded, from_wire
from sllm.gateway.connect.services import Method
from sllm.gateway.gateway import GOING_DOWN, Gateway

_CARRIED: Final = ("traceparent", "tracestate", "baggage", "authorization")
"""Headers that go along as metadata."""

Context = RequestContext[Any, Any]


class _UnderWay:
    """A call that is being answered: the gateway ends it when it goes down."""

    def __init__(self) -> None:
        self.call: Any = None
        self.ended = False

    def end(self) -> None:
        self.ended = True
        if self.call is not None:
            self.call.cancel()


_entered: ContextVar[_UnderWay] = ContextVar("entered")
"""The call that a task works on."""


class Forwarder:
    """The way to a gateway's control planes. Each has a channel, made with its first call."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._addresses = gateway.settings.controls
        self._current = 0
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._watches: set[_UnderWay] = set()
        """Calls that have no end of their own."""

    def end_watches(self) -> None:
        """Ends the calls that would not end by themselves."""
        for one in list(self._watches):
            one.end()

    async def close(self) -> None:
        """Ends the calls under way, and the channels."""
        for channel in self._channels.values():
            await channel.close(None)

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
            with self._told(method, context) as under_way:
                wire = await request.to_wire(method.request)
                ask: Any = self._channel().unary_unary(method.path)
                call = under_way.call = ask(wire, **_options(context))
                return await from_wire(request.codec, await call, method.response)

        return serve

    def _server_stream(self, method: Method) -> Callable[[Encoded, Context], Any]:
        async def serve(request: Encoded, context: Context) -> AsyncGenerator[bytes]:
            with self._told(method, context) as under_way:
                wire = await request.to_wire(method.request)
                ask: Any = self._channel().unary_stream(method.path)
                call = under_way.call = ask(wire, **_options(context))
                try:
                    async for answer in call:
                        yield await from_wire(request.codec, answer, method.response)
                finally:
                    call.cancel()

        return serve

    def _client_stream(self, method: Method) -> Callable[[AsyncIterator[Encoded], Context], Any]:
        async def serve(requests: AsyncIterator[Encoded], context: Context) -> bytes:
            with self._told(method, context) as under_way:
                ask: Any = self._channel().stream_unary(method.path)
                call = under_way.call = ask(**_options(context))
                try:
                    codec = await _send_all(call, requests, method)
                    return await from_wire(codec, await call, method.response)
                finally:
                    call.cancel()

        return serve

    @contextmanager
    def entered(self) -> Iterator[None]:
        """A call from before its body is read: it is one of those that the gateway counts.

        Raises:
            errors.ShuttingDown: It comes too late.
            errors.QueueFull: Too many are under way.
        """
        under_way = _UnderWay()
        self._gateway.enter(under_way)
        token = _entered.set(under_way)
        try:
            yield
        finally:
            _entered.reset(token)
            self._gateway.leave(under_way)

    @contextmanager
    def _told(self, method: Method, context: Context) -> Iterator[_UnderWay]:
        """A call within which failures are told as its caller reads them."""
        asked = self._current
        under_way = _entered.get()
        try:
            with failures.told(method.path, self._addresses[asked]):
                if under_way.ended:
                    raise errors.ShuttingDown(GOING_DOWN)
                if _is_watch(method):
                    self._watches.add(under_way)
                yield under_way
        except ConnectError as error:
            if failures.is_away(error):
                self._turn_from(asked)
            raise
        except asyncio.CancelledError as error:
            raise _in_words(error, method, context, under_way) from error
        finally:
            self._watches.discard(under_way)

    def _turn_from(self, asked: int) -> None:
        """The next call goes to another control plane, if there is any."""
        if self._current == asked:
            self._current = (asked + 1) % len(self._addresses)

    def _channel(self) -> grpc.aio.Channel:
        address = self._addresses[self._current]
        if address not in self._channels:
            self._channels[address] = self._gateway.planes.dial(address)
        return self._channels[address]


def _is_watch(method: Method) -> bool:
    return method.path.rpartition("/")[2].startswith("Watch")


async def _send_all(call: Any, requests: AsyncIterator[Encoded], method: Method) -> str:
    codec = ""
    async for request in requests:
        codec = request.codec
        if not await sending.write(call, await request.to_wire(method.request)):
            return codec  # the control plane has heard enough
    await call.done_writing()
    return codec


def _options(context: Context) -> dict[str, Any]:
    headers = context.request_headers
    metadata = [(key, headers[key]) for key in _CARRIED if key in headers]
    left = context.timeout_ms
    timeout = None if left is None else min(max(left, 0.0) / 1000.0, bounds.LONGEST)
    return {"timeout": timeout, "metadata": metadata}


def _in_words(
    error: asyncio.CancelledError, method: Method, context: Context, under_way: _UnderWay
) -> BaseException:
    """What a caller is told whose deadline, or whose gateway's end, has cancelled its call."""
    task = asyncio.current_task()
    if under_way.ended and not (task and task.cancelling()):
        return failures.to_connect(errors.ShuttingDown(GOING_DOWN))
    left = context.timeout_ms
    if left is not None and left <= 0.0:
        message = f"{method.path} had no end before its deadline"
        return failures.to_connect(errors.DeadlineExceeded(message))
    return error
