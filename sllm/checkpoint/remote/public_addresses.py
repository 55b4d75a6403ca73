"""Connections to public addresses alone, for a library that looks names up by itself.

Whoever names a host can have it resolve to one address when it is checked, and to another when it
is connected to, or answer with a redirect. So the library is given a proxy on loopback, which looks
the name up, checks what it has found, and connects to just that. Bytes pass through it within the
kernel (splice), between threads that hold no lock of the interpreter meanwhile.
"""

import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final
from urllib.parse import urlsplit

from sllm.addresses import is_public
from sllm.errors import SourceNotAllowed

_CONNECT_SECONDS: Final = 5.0
_PIECE_BYTES: Final = 1 << 20
"""Moved at once, as far as a pipe takes so much."""
_LOCAL_HEADERS: Final = frozenset({"connection", "proxy-connection", "proxy-authorization"})
"""Between a client and its proxy."""

Permitted = Callable[[str], bool]
"""Whether a host may have a private address."""


def check_public(host: str, port: int, permitted: Permitted) -> None:
    """Refuses a web server that is at a private address now.

    Raises:
        SourceNotAllowed: Says which host, and what an operator may do.
    """
    with suppress(OSError):  # what cannot be found is told by whoever connects
        if not _public(_look_up(host, port)) and not permitted(host):
            raise SourceNotAllowed(
                f"{host} has a private address, which nodes do not fetch from: the cluster's "
                "operator may allow this host (sllm node --sources), or all of them "
                "(--allow-private-sources)",
                metadata={"host": host},
            )


def _look_up(host: str, port: int) -> list[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[4][0]) for address in found))


def _public(addresses: list[str]) -> list[str]:
    """Those that anybody on the internet may connect to."""
    return [one for one in addresses if is_public(one)]


class PublicProxy:
    """A proxy on loopback that connects to no private address, unless its host is permitted."""

    def __init__(self, permitted: Permitted) -> None:
        self._server = _Server(permitted)
        threading.Thread(
            target=self._server.serve_forever, name="public-proxy", daemon=True
        ).start()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        """Takes no more connections; those under way end with their clients."""
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, permitted: Permitted) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.permitted = permitted

    def connect(self, host: str, port: int) -> socket.socket:
        """A connection to the first address that may be, and answers.

        Raises:
            PermissionError: None may be.
            OSError: None can be had.
        """
        addresses = _look_up(host, port)
        if not self.permitted(host):
            addresses = _public(addresses)
        failure: OSError = PermissionError(f"{host} has no public address")
        for address in addresses:
            try:
                connection = socket.create_connection((address, port), _CONNECT_SECONDS)
            except OSError as error:
                failure = error
            else:
                connection.settimeout(None)  # splice waits in the kernel
                return connection
        raise failure


class _Handler(BaseHTTPRequestHandler):
    """One connection of a client: a tunnel, or one request that is sent on."""

    server: _Server

    def do_CONNECT(self) -> None:
        host, _, port = self.path.rpartition(":")
        if (upstream := self._connected(host.strip("[]"), int(port))) is None:
            return
        with upstream:
            self.send_response(HTTPStatus.OK)
            self.end_headers()
            self._pass_both_ways(upstream)

    def do_GET(self) -> None:
        """As HEAD. The server is asked to end its answer by ending the connection."""
        parts = urlsplit(self.path)
        upstream = self._connected(parts.hostname or "", parts.port or 80)
        if upstream is None:
            return
        with upstream:
            kept = {k: v for k, v in self.headers.items() if k.lower() not in _LOCAL_HEADERS}
            path = parts._replace(scheme="", netloc="").geturl() or "/"
            lines = [f"{self.command} {path} HTTP/1.1", *(f"{k}: {v}" for k, v in kept.items())]
            upstream.sendall(("\r\n".join([*lines, "Connection: close"]) + "\r\n\r\n").encode())
            self._pass_both_ways(upstream)

    do_HEAD = do_GET

    def _pass_both_ways(self, upstream: socket.socket) -> None:
        """Until the client ends its side: a server that never answers must hold up nothing here."""
        back = threading.Thread(target=_pass_on, args=(upstream, self.connection), daemon=True)
        back.start()
        _pass_on(self.connection, upstream)
        with suppress(OSError):
            upstream.shutdown(socket.SHUT_RDWR)
        back.join()

    def _connected(self, host: str, port: int) -> socket.socket | None:
        self.close_connection = True
        try:
            return self.server.connect(host, port)
        except PermissionError as error:
            self.send_error(HTTPStatus.FORBIDDEN, explain=str(error))
        except OSError as error:
            self.send_error(HTTPStatus.BAD_GATEWAY, explain=str(error))
        return None

    def log_message(self, *_: object) -> None:
        """Nothing: what fails is told by whoever has asked."""


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    """All bytes of one connection to another, and then its end."""
    reading, writing = os.pipe()
    with suppress(OSError), os.fdopen(reading), os.fdopen(writing, "wb"):
        while count := os.splice(source.fileno(), writing, _PIECE_BYTES):
            while count:
                count -= os.splice(reading, target.fileno(), count)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)
