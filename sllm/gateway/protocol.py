"""HTTP/1.1 of one connection, with bounds on callers who are slow to say what they want."""

import asyncio
from typing import Any, Final

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

MAX_HEAD_BYTES: Final = 64 * 1024
"""Of a request's head, with its trailers; and of anything that nothing has come of yet."""
_UNREADABLE: Final = "Invalid HTTP request received."
_NOT_PASSED_ON: Final = (b"upgrade", b"http2-settings")


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol waits for a head for ever, and keeps as much of it as comes.

    Whoever offers to go on in another protocol (h2c, as Java's client does) is answered in this
    one; the parser would end with its offer, and the body be lost.
    """

    header_seconds: float = 20.0
    """For a head to arrive, from the connection or the last answer on."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio.Protocol."""
        super().connection_made(transport)
        self._unmade = 0
        """Bytes that have come since anything was made of them."""
        self._head_bytes = 0
        self._in_head = False
        self._offers = False
        self._deaf = False
        self._awaits_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._head_has_come()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        if self._deaf or self.transport.is_closing():
            return
        self._unset_keepalive_if_required()
        self._unmade += len(data)
        self._feed(data)
        if max(self._unmade, self._head_bytes) > MAX_HEAD_BYTES:
            self._refuse(431)

    def _feed(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._go_on(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self._refuse(400)

    def _go_on(self, rest: bytes) -> None:
        """Reads the request again without its offer, and what follows its head."""
        method = self.parser.get_method()
        if method == b"CONNECT":  # there is no other protocol to go on in
            self._refuse(400)
            return
        head = [method, b" ", self.url, b" HTTP/1.1\r\n"]
        for name, value in self.headers:
            if name == b"connection":
                value = _without_offer(value)
            if name not in _NOT_PASSED_ON and (value or name != b"connection"):
                head += [name, b": ", value, b"\r\n"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._offers = False
        self._feed(b"".join((*head, b"\r\n")))
        if rest and not self.transport.is_closing():
            self._feed(rest)

    def on_message_begin(self) -> None:
        """See httptools."""
        super().on_message_begin()
        self._in_head, self._offers = True, False
        self._unmade = self._head_bytes = 0
        if self._late is None:
            self._awaits_head()

    def on_header(self, name: bytes, value: bytes) -> None:
        """See httptools. Trailers are counted, and left out: nobody here reads them."""
        self._head_bytes += len(name) + len(value) + len(b": \r\n")
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """See httptools."""
        self._in_head, self._unmade = False, 0
        self._head_has_come()
        self._offers = self.parser.should_upgrade()
        if not self._offers:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """See httptools."""
        self._unmade = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """See httptools."""
        self._unmade = 0
        if not self._offers:
            super().on_message_complete()

    _late: asyncio.TimerHandle | None = None

    def _awaits_head(self) -> None:
        self._late = self.loop.call_later(self.header_seconds, self._refuse, 408)

    def _head_has_come(self) -> None:
        if self._late:
            self._late.cancel()
            self._late = None

    def _refuse(self, status: int) -> None:
        """Answers and hangs up; where another answer is under way, that is the last one."""
        self._head_has_come()
        if self.transport.is_closing() or self._deaf:
            return
        self._deaf = True
        if self._answers():
            self.cycle.keep_alive = False
        elif status == 400:
            self.send_400_response(_UNREADABLE)
        else:
            head = (STATUS_LINE[status], b"connection: close\r\n", b"content-length: 0\r\n\r\n")
            self.transport.write(b"".join(head))
            self.transport.close()

    def _answers(self) -> bool:
        """Whether an answer is under way, or due before that to what is being read."""
        cycle: Any = self.cycle  # uvicorn declares it without the None that it begins with
        if cycle is None or cycle.response_complete:
            return False
        reads_its_body = cycle.more_body and not self._in_head
        return cycle.response_started or bool(self.pipeline) or not reads_its_body


def _without_offer(value: bytes) -> bytes:
    """A Connection header that asks for nothing but what is left."""
    options = [one.strip() for one in value.split(b",")]
    left_out = ("upgrade", "http2-settings")
    return b", ".join(one for one in options if one.decode("latin-1").lower() not in left_out)


def protocol(header_seconds: float) -> type[Any]:
    """The same with a bound of its own."""
    return type("Protocol", (BoundedProtocol,), {"header_seconds": header_seconds})
