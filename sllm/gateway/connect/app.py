"""The application: every service by Connect, gRPC-Web and plain JSON, with reflection."""

import asyncio
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

from connectrpc.method import StreamType
from connectrpc.server import ConnectASGIApplication
from starlette.routing import BaseRoute, Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sllm.gateway.connect import reflection, services
from sllm.gateway.connect.codecs import CODECS
from sllm.gateway.connect.forwarding import Forwarder
from sllm.gateway.connect.lines import Lines
from sllm.gateway.gateway import Gateway

_GRPC: Final = b"application/grpc"
_WEB: Final = b"application/grpc-web"
_ONLY_GRPC: Final = (
    b"gRPC itself is spoken on the control plane's own port; here are Connect, gRPC-Web and JSON\n"
)


class Connect:
    """Serves the control plane's services over HTTP."""

    def __init__(self, gateway: Gateway) -> None:
        self._forwarder = Forwarder(gateway)
        self._patience = gateway.settings.body_seconds
        most = gateway.settings.max_body_bytes
        served = list(services.methods())
        endpoints = {one.path: self._forwarder.endpoint(one) for one in served}
        app: Any = _Services({**endpoints, **reflection.endpoints()}, most)
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
        kind = dict(scope["headers"]).get(b"content-type", b"")
        if kind.startswith(_GRPC) and not kind.startswith(_WEB):
            await _refuse(send)
        else:
            await self._app(_plain(scope), _InTime(receive, self._patience), send)


class _InTime:
    """A request's body: whoever takes too long over the next part of it has left."""

    def __init__(self, receive: Receive, seconds: float) -> None:
        self._receive = receive
        self._seconds = seconds
        self._whole = False

    async def __call__(self) -> Message:
        try:
            async with asyncio.timeout(None if self._whole else self._seconds):
                message = await self._receive()
        except TimeoutError:
            return {"type": "http.disconnect"}
        self._whole = not message.get("more_body", False)
        return message


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
