"""Answers that come before the end of what they answer: they are read to the end all the same."""

import asyncio
from contextlib import suppress
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_SECONDS: Final = 2.0
"""For which the rest of a body is passed over."""


class Lingering:
    """Around an application: a connection ends once its caller has said all, or after a while.

    If it ended with bytes unread, the system would reset it, and with that throw away the answer,
    such as that a body is too large, before a caller has read it that is still writing.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = _Body(receive)

        async def lingering(message: Message) -> None:
            last = message["type"] == "http.response.body" and not message.get("more_body")
            if not last or body.whole:
                await send(message)
                return
            await send({**message, "more_body": True})
            await body.pass_over()
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        await self._app(scope, body.receive, lingering)


class _Body:
    """What comes of a request's body."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.whole = False
        """Whether nothing more comes."""

    async def receive(self) -> Message:
        """See ASGI."""
        message = await self._receive()
        self.whole = self.whole or not message.get("more_body", False)
        return message

    async def pass_over(self) -> None:
        """Takes what is still to come, for a while."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_SECONDS):
                while not self.whole:
                    await self.receive()
