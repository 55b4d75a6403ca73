"""One request and its answer, for as long as its caller is there."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import TypeVar

from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send

from sllm.gateway import bodies
from sllm.gateway.bodies import Body
from sllm.gateway.context import REQUEST_ID, Context, digest
from sllm.gateway.failures import invalid
from sllm.gateway.gateway import Gateway
from sllm.gateway.sse import EventStream

Made = TypeVar("Made")


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
        self.digest = ""
        """Of the body, once it has been read."""
        self._plain_send = send
        self._held = 0
        self._arrived = 0
        self._work = asyncio.current_task()
        self._companion: asyncio.Task[None] | None = None

    @property
    def path_params(self) -> Mapping[str, str]:
        """What the route has found in the path."""
        found: Mapping[str, str] = self.scope.get("path_params", {})
        return found

    async def fields(self, kind: type[Body], made: Callable[[Body], Made]) -> tuple[Body, Made]:
        """The body as its fields, and what is made of them.

        From then on a caller that leaves ends the request. The body counts for as long as it lasts.

        Raises:
            errors.InvalidRequest: It is not what it should be.
            errors.QueueFull: Bodies of too many bytes are held.
            bodies.Refusal: It is too large or too slow.
        """
        settings = self.gateway.settings
        most, seconds = settings.max_body_bytes, settings.body_seconds
        body = await bodies.read(self.receive, most, seconds, self._hold)
        self.watch()

        def work() -> tuple[str, Body, Made]:
            request = bodies.checked(kind, bodies.parsed(body))
            return digest(body), request, made(request)

        try:
            self.digest, request, found = await bodies.beside(len(body), work)
        except RecursionError as error:
            raise invalid("the body is too deep") from error
        return request, found

    def arrives(self, count: int) -> None:
        """Counts a part of a file against all that are on their way, until the answer ends.

        Raises:
            errors.QueueFull: They would be too many bytes.
        """
        self.gateway.arriving.take(count)
        self._arrived += count

    def _hold(self, count: int) -> None:
        self.gateway.held.take(count)
        self._held += count

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
        self.gateway.held.give(self._held)
        self.gateway.arriving.give(self._arrived)
        self._held = self._arrived = 0
        if self._companion:
            self._companion.cancel()

    def _own_headers(self) -> dict[str, str]:
        named = self.context.request_id
        return {REQUEST_ID: named, "request-id": named}  # as clients of OpenAI and Anthropic read

    async def _send(self, message: Message) -> None:
        """Sends a part of the answer; whoever takes nothing for that long has left."""
        try:
            async with asyncio.timeout(self.gateway.settings.write_seconds):
                await self._plain_send(message)
        except TimeoutError as error:
            self.left = True
            raise bodies.Gone from error

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
