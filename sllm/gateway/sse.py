"""Server-sent events: a stream that is kept alive while it has nothing to say."""

from collections.abc import Mapping
from typing import Final

from starlette.types import Send

_HEADERS: Final = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",  # nginx would wait for more
}


class EventStream:
    """Writes one response; what is written first opens it.

    A write waits while the caller reads too slowly, and so does what is read of its generation.
    """

    def __init__(self, send: Send, headers: Mapping[str, str]) -> None:
        self._send = send
        self._headers = {**_HEADERS, **headers}
        self._comment = "waiting"
        self._written = False
        self.opened = False
        """Whether the head has been sent: from then on its status is 200."""

    async def write(self, events: bytes) -> None:
        """Sends whole events."""
        await self.open()
        self._written = True
        await self._send({"type": "http.response.body", "body": events, "more_body": True})

    async def comment(self, text: str) -> None:
        """Tells how far it is, which clients ignore; before the head is sent it is kept."""
        self._comment = text
        if self.opened:
            await self.write(_comment(text))

    async def pulse(self) -> None:
        """Opens the stream; says that it is alive, if it has said nothing since the last time."""
        if not self._written:
            await self.write(_comment(self._comment))
        self._written = False

    async def open(self) -> None:
        """Sends the head."""
        if self.opened:
            return
        self.opened = True
        head = [(name.encode(), value.encode("latin-1")) for name, value in self._headers.items()]
        await self._send({"type": "http.response.start", "status": 200, "headers": head})

    async def close(self) -> None:
        """Sends the end."""
        await self.open()
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})


def data(payload: bytes) -> bytes:
    """An event of some JSON."""
    return b"data: " + payload + b"\n\n"


def event(name: str, payload: bytes) -> bytes:
    """An event of some JSON that has a name."""
    return b"event: " + name.encode() + b"\ndata: " + payload + b"\n\n"


def _comment(text: str) -> bytes:
    return b": " + " ".join(text.split()).encode() + b"\n\n"
