"""HTTP/1.1 of one connection, with bounds on callers who are slow to say what they want."""

import asyncio
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

MAX_HEAD_BYTES: Final = 64 * 1024


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol waits for a head for ever, and keeps as much of it as comes."""

    header_seconds: float = 20.0
    """For a head to arrive, from the connection or the last answer on."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio.Protocol."""
        super().connection_made(transport)
        self._head_bytes = 0
        self._in_head = False
        self._awaits_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._head_has_come()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        super().data_received(data)
        if not self._in_head:
            return
        self._head_bytes += len(data)
        if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._refuse(431)

    def on_message_begin(self) -> None:
        """See httptools."""
        super().on_message_begin()
        self._in_head, self._head_bytes = True, 0
        if self._late is None:
            self._awaits_head()

    def on_headers_complete(self) -> None:
        """See httptools."""
        self._in_head = False
        self._head_has_come()
        super().on_headers_complete()

    _late: asyncio.TimerHandle | None = None

    def _awaits_head(self) -> None:
        self._late = self.loop.call_later(self.header_seconds, self._refuse, 408)

    def _head_has_come(self) -> None:
        if self._late:
            self._late.cancel()
            self._late = None

    def _refuse(self, status: int) -> None:
        self._late = None
        if self.transport.is_closing():
            return
        head = (STATUS_LINE[status], b"connection: close\r\n", b"content-length: 0\r\n\r\n")
        self.transport.write(b"".join(head))
        self.transport.close()


def protocol(header_seconds: float) -> type[Any]:
    """The same with a bound of its own."""
    return type("Protocol", (BoundedProtocol,), {"header_seconds": header_seconds})
