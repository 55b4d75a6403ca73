"""Streams for plain HTTP clients: one JSON message in, a line of JSON for each message out.

Connect wants an envelope around every message of a stream, which `curl` cannot write by itself.
"""

import json
from collections.abc import Collection
from http import HTTPStatus
from typing import Any, Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_PREFIX_BYTES: Final = 5
_END: Final = 0b10
_PLAIN: Final = b"application/json"
_STREAM: Final = b"application/connect+json"
_LINES: Final = b"application/x-ndjson"
_UNSUPPORTED: Final = (b"content-encoding", b"connect-content-encoding")
_STATUSES: Final = {
    "canceled": 499,
    "invalid_argument": HTTPStatus.BAD_REQUEST,
    "deadline_exceeded": HTTPStatus.GATEWAY_TIMEOUT,
    "not_found": HTTPStatus.NOT_FOUND,
    "already_exists": HTTPStatus.CONFLICT,
    "permission_denied": HTTPStatus.FORBIDDEN,
    "resource_exhausted": HTTPStatus.TOO_MANY_REQUESTS,
    "failed_precondition": HTTPStatus.BAD_REQUEST,
    "aborted": HTTPStatus.CONFLICT,
    "out_of_range": HTTPStatus.BAD_REQUEST,
    "unimplemented": HTTPStatus.NOT_IMPLEMENTED,
    "unavailable": HTTPStatus.SERVICE_UNAVAILABLE,
    "unauthenticated": HTTPStatus.UNAUTHORIZED,
}
"""As Connect maps the codes of unary calls; those that are not here are 500."""


class Lines:
    """Around an application that speaks Connect."""

    def __init__(self, app: ASGIApp, paths: Collection[str], max_bytes: int) -> None:
        """Takes over calls of `paths`, methods that answer with a stream, in plain JSON."""
        self._app = app
        self._paths = frozenset(paths)
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http" or not self._is_plain(scope):
            await self._app(scope, receive, send)
            return
        enveloped = _Enveloped(receive, self._max_bytes)
        await self._app(_as_connect(scope), enveloped, _Unwrapped(send))

    def _is_plain(self, scope: Scope) -> bool:
        headers = dict(scope["headers"])
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        encoded = any(name in headers for name in _UNSUPPORTED)
        return scope["path"] in self._paths and kind == _PLAIN and not encoded


def _as_connect(scope: Scope) -> Scope:
    left_out = (b"content-type", b"content-length", b"connect-accept-encoding")
    headers = [(name, value) for name, value in scope["headers"] if name not in left_out]
    return {**scope, "headers": [*headers, (b"content-type", _STREAM)]}


class _Enveloped:
    """A request's body as one message of a stream."""

    def __init__(self, receive: Receive, max_bytes: int) -> None:
        self._receive = receive
        self._max_bytes = max_bytes
        self._read = False

    async def __call__(self) -> Message:
        if self._read:
            return await self._receive()
        body = bytearray()
        more = True
        # One byte more than is allowed is enough for the application to refuse it.
        while more and len(body) <= self._max_bytes:
            message = await self._receive()
            if message["type"] != "http.request":
                return message
            body += message.get("body", b"")
            more = message.get("more_body", False)
        self._read = True
        prefix = b"\0" + len(body).to_bytes(4, "big")
        return {"type": "http.request", "body": prefix + bytes(body), "more_body": more}


class _Unwrapped:
    """A stream's messages as lines; what fails before the first of them is an answer of its own."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._held: Message | None = None
        self._streams = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] == HTTPStatus.OK:
            self._held, self._streams = message, True
        elif message["type"] == "http.response.body" and self._streams:
            await self._line(message["body"], more=message.get("more_body", False))
        else:
            await self._send(message)

    async def _line(self, envelope: bytes, *, more: bool) -> None:
        text, failed = envelope[_PREFIX_BYTES:], None
        if envelope[0] & _END:
            failed = json.loads(text).get("error")
            text = b"" if failed is None else _json(failed if self._held else {"error": failed})
        await self._begin(failed)
        body = text + b"\n" if text else b""
        await self._send({"type": "http.response.body", "body": body, "more_body": more})

    async def _begin(self, failed: dict[str, Any] | None) -> None:
        """Sends what was held back until it was known how the call goes."""
        held, self._held = self._held, None
        if held is None:
            return
        status = int(HTTPStatus.OK)
        if failed is not None:
            status = int(_STATUSES.get(failed["code"], HTTPStatus.INTERNAL_SERVER_ERROR))
        left_out = (b"content-type", b"connect-content-encoding")
        headers = [(name, value) for name, value in held["headers"] if name not in left_out]
        headers.append((b"content-type", _LINES if failed is None else _PLAIN))
        await self._send({**held, "status": status, "headers": headers})


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()
