"""Keeps pages of other origins away from what can deploy and drain."""

import ipaddress
from collections.abc import Collection
from http import HTTPStatus
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from sllm import errors
from sllm.gateway.failures import encoded, openai_error

_LOCAL: Final = "localhost"


class SameOrigin:
    """Around an application: refuses what a page of another origin has a browser send.

    Such a page may have a name of its own lead to this machine (DNS rebinding): then browsers take
    it for the same origin. So what comes over the loopback interface must name that, or one of
    `hosts`. Whoever is no browser sends no Origin, and is told nothing.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str] = ()) -> None:
        """`hosts` are names without a port, as of a proxy on this machine."""
        self._app = app
        self._hosts = frozenset(host.lower() for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        problem = self._problem(scope) if scope["type"] in ("http", "websocket") else ""
        if problem:
            await _refuse(send, problem)
        else:
            await self._app(scope, receive, send)

    def _problem(self, scope: Scope) -> str:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get(b"host", "").lower()
        if _is_loopback(scope) and not self._may_be(_name(host)):
            return f"this server is not called {host!r}; --allow-host lets it be"
        origin = headers.get(b"origin", "").lower()
        if origin and not self._is_own(origin.partition("://")[2], host):
            return f"pages of {origin} may not call this server"
        return ""

    def _is_own(self, origin: str, host: str) -> bool:
        """Whether a page is of this server, or of a proxy that calls it by another name."""
        return origin == host or _name(origin) in self._hosts

    def _may_be(self, name: str) -> bool:
        if name in self._hosts or name == _LOCAL or name.endswith(f".{_LOCAL}"):
            return True
        try:
            return _leads_here(name)
        except ValueError:
            return False


def _is_loopback(scope: Scope) -> bool:
    """Whether a connection has come to a loopback address; Unix sockets have none."""
    server = scope.get("server")
    try:
        return server is not None and _leads_here(server[0])
    except ValueError:
        return False


def _leads_here(address: str) -> bool:
    """Whether an address is a loopback one, also where IPv6 has it for an IPv4 one."""
    found = ipaddress.ip_address(address)
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return (mapped or found).is_loopback


def _name(host: str) -> str:
    """A Host header without its port, and an IPv6 address without its brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


async def _refuse(send: Send, problem: str) -> None:
    status, error = int(HTTPStatus.FORBIDDEN), errors.InvalidArgument(problem)
    headers = [(b"content-type", b"application/json")]
    start = {"type": "http.response.start", "status": status}
    await send({**start, "headers": headers})
    await send({"type": "http.response.body", "body": encoded(openai_error(error, status))})
