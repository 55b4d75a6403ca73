"""The application: every service by Connect, gRPC-Web and plain JSON, with reflection."""

import asyncio
from base64 import b64encode
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

from connectrpc.method import StreamType
from connectrpc.server import ConnectASGIApplication
from starlette.routing import BaseRoute, Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sllm import errors
from sllm.gateway.connect import failures, reflection, services
from sllm.gateway.connect.codecs import CODECS
from sllm.gateway.connect.forwarding import Forwarder
from sllm.gateway.connect.lines import Lines
from sllm.gateway.failures import encoded, status_of
from sllm.gateway.gateway import Gateway
from sllm.gateway.held import Held

_TALKS: Final = (StreamType.CLIENT_STREAM, StreamType.BIDI_STREAM)
"""Those whose callers send messages for as long as they like."""
_GRPC: Final = b"application/grpc"
_WEB: Final = b"application/grpc-web"
_ONLY_GRPC: Final = (
    b"gRPC itself is spoken on the control plane's own port; here are Connect, gRPC-Web and JSON\n"
)


class Connect:
    """Serves the control plane's services over HTTP."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._forwarder = Forwarder(gateway)
        self._patience = gateway.settings.body_seconds
        most = gateway.settings.max_body_bytes
        served = list(services.methods())
        endpoints = {one.path: self._forwarder.endpoint(one) for one in served}
        app: Any = _Services({**endpoints, **reflection.endpoints()}, most)
        self._talks = frozenset(one.path for one in served if one.stream_type in _TALKS)
        streams = [one.path for one in served if one.stream_type is StreamType.SERVER_STREAM]
        self._app: ASGIApp = Lines(app, streams, most)

    def routes(self) -> list[BaseRoute]:
        """Where it is served: at `/package.Service/Method`, as all of its clients expect."""
        names = [service.full_name for service in services.SERVICES]
        return [Mount(f"/{name}", app=self) for name in (*names, *reflection.names())]

    def end_watches(self) -> None:
        """Ends the calls that would not end by themselves; their callers call again elsewhere."""
        self._forwarder.end_watches()

    async def close(self) -> None:
        """Ends the calls under way."""
        await self._forwarder.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        send = _kept_by_nobody(send)
        kind = dict(scope["headers"]).get(b"content-type", b"")
        if kind.startswith(_GRPC) and not kind.startswith(_WEB):
            await _refuse(send)
            return
        if not _readable(scope):
            await _turn_away(send, errors.InvalidArgument("a header is no text in UTF-8"))
            return
        body = _InTime(receive, self._patience, self._gateway.held)
        body.in_parts = scope["path"] in self._talks
        try:
            with self._forwarder.entered():
                await self._app(_plain(scope), body, send)
        except errors.SllmError as error:  # before anything of it was read
            await _turn_away(send, error)
        finally:
            body.close()


class _InTime:
    """A request's body: whoever takes too long over it has left. It counts while it is held."""

    in_parts = False
    """Whether it is passed on as it comes: then it has that time for each part."""

    def __init__(self, receive: Receive, seconds: float, held: Held) -> None:
        self._receive = receive
        self._seconds = seconds
        self._held = held
        self._count = 0
        self._until = asyncio.get_running_loop().time() + seconds
        self._whole = False

    async def __call__(self) -> Message:
        try:
            async with asyncio.timeout_at(self._latest()):
                message = await self._receive()
        except TimeoutError:
            return {"type": "http.disconnect"}
        self._whole = not message.get("more_body", False)
        self._hold(len(message.get("body", b"")))
        return message

    def close(self) -> None:
        """Holds nothing more."""
        self._held.give(self._count)
        self._count = 0

    def _latest(self) -> float | None:
        if self._whole:
            return None
        now = asyncio.get_running_loop().time()
        return now + self._seconds if self.in_parts else self._until

    def _hold(self, count: int) -> None:
        if self.in_parts:
            self.close()
        try:
            self._held.take(count)
        except errors.QueueFull as error:
            raise failures.to_connect(error) from error
        self._count += count


def _kept_by_nobody(send: Send) -> Send:
    """Has no cache on the way keep an answer: a key's secret is told once, to whoever made it."""

    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = [*message.get("headers", ()), (b"cache-control", b"no-store")]
            message = {**message, "headers": headers}
        await send(message)

    return sent


def _readable(scope: Scope) -> bool:
    """Whether headers are text as the library reads it, which would fail otherwise."""
    try:
        for one in scope["headers"]:
            b"".join(one).decode()
    except UnicodeDecodeError:
        return False
    return True


def _plain(scope: Scope) -> Scope:
    """Has answers go as they are: to compress a large one would hold up all other streams."""
    headers = [one for one in scope["headers"] if not one[0].endswith(b"accept-encoding")]
    return {**scope, "headers": headers}


async def _refuse(send: Send) -> None:
    """Answers callers of gRPC, which needs trailers: servers of HTTP/1.1 do not send any."""
    status = int(HTTPStatus.UNSUPPORTED_MEDIA_TYPE)
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": _ONLY_GRPC})


async def _turn_away(send: Send, error: errors.SllmError) -> None:
    """Answers a call that was not taken: all of the protocols' clients read the status."""
    told = failures.to_connect(error)
    details = [
        {"type": one.type_name, "value": b64encode(one.message_bytes).decode().rstrip("=")}
        for one in told.details
    ]
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status_of(error), "headers": headers})
    body = encoded({"code": told.code.value, "message": told.message, "details": details})
    await send({"type": "http.response.body", "body": body})


class _Services(ConnectASGIApplication[Mapping[str, Any]]):
    """The library's application over all services together."""

    def __init__(self, endpoints: Mapping[str, Any], most_bytes: int) -> None:
        super().__init__(
            service=endpoints,
            endpoints=lambda found: found,
            codecs=CODECS,
            read_max_bytes=most_bytes,
        )

    @property
    def path(self) -> str:
        """Endpoints have the whole of theirs."""
        return ""
