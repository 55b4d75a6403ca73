"""One request and its answer, for as long as its caller is there."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from sllm.gateway import bodies
from sllm.gateway.context import REQUEST_ID, Context
from sllm.gateway.gateway import Gateway
from sllm.gateway.sse import EventStream


class Exchange:
    """What a handler reads of a request, and answers it with."""

    def __init__(
        self, gateway: Gateway, context: Context, scope: Scope, receive: Receive, send: Send
    ) -> None:
        self.gateway = gateway
        self.context = context
        self.scope = scope
        self.headers = Headers(scope=scope)
        self.receive = receive
        self.began = time.monotonic()
        """When its head had come, in seconds of the monotonic clock."""
        self.status = 0
        """Of the answer, once its head is sent."""
        self.stream: EventStream | None = None
        self.left = False
        """Whether the caller has gone."""
        self.ended = False
        """Whether the gateway has ended it."""
        self._send = send
        self._work = asyncio.current_task()
        self._companion: asyncio.Task[None] | None = None

    @property
    def path_params(self) -> Mapping[str, str]:
        """What the route has found in the path."""
        found: Mapping[str, str] = self.scope.get("path_params", {})
        return found

    async def json(self) -> dict[str, Any]:
        """The body as a JSON object; from then on a caller that leaves ends the request.

        Raises:
            errors.InvalidArgument: It is none.
            bodies.Refusal: It is too large or too slow.
        """
        settings = self.gateway.settings
        body = await bodies.read(self.receive, settings.max_body_bytes, settings.body_seconds)
        self.watch()
        return bodies.parsed(body)

    def watch(self) -> None:
        """Has the request end when its caller leaves; its body has been read."""
        if self._companion is None:
            self._companion = asyncio.create_task(self._accompany(), name="caller")

    async def reply(
        self,
        body: bytes,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Answers with a whole body, of JSON unless headers say what it is."""
        told = {"content-type": "application/json", **(headers or {}), **self._own_headers()}
        told["content-length"] = str(len(body))
        await self._send({"type": "http.response.start", "status": status, "headers": _raw(told)})
        await self._send({"type": "http.response.body", "body": body})
        self.status = status

    async def send_all(self, parts: AsyncIterator[bytes], content_type: str) -> None:
        """Answers with a body of any size, as fast as its caller reads."""
        told = {"content-type": content_type, **self._own_headers()}
        await self._send({"type": "http.response.start", "status": 200, "headers": _raw(told)})
        self.status = 200
        async for part in parts:
            await self._send({"type": "http.response.body", "body": part, "more_body": True})
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    def events(self) -> EventStream:
        """Answers with a stream of events."""
        self.stream = EventStream(self._send, self._own_headers())
        return self.stream

    def end(self) -> None:
        """Ends the request from outside."""
        self.ended = True
        if self._work:
            self._work.cancel()

    def excuse(self) -> bool:
        """Whether the task was cancelled by this; it may go on then, to tell the caller."""
        if not (self.left or self.ended) or self._work is None:
            return False
        while self._work.uncancel():
            pass
        return True

    def close(self) -> None:
        """Looks after the caller no more."""
        if self._companion:
            self._companion.cancel()

    def _own_headers(self) -> dict[str, str]:
        return {REQUEST_ID: self.context.request_id}

    async def _accompany(self) -> None:
        settings = self.gateway.settings
        pause = settings.hold_seconds
        while True:
            try:
                async with asyncio.timeout(pause):
                    message = await self.receive()
            except TimeoutError:
                pause = settings.pulse_seconds
                if self.stream:
                    await self.stream.pulse()
                continue
            if message["type"] == "http.disconnect":
                break
        self.left = True
        if self._work:
            self._work.cancel()


def _raw(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
