"""Images fetched from where their callers say, as far as a deployment allows it.

Whoever may name a URL has a server make a call for him. So a host is looked up once, its addresses
are looked at, and one of these is connected to, whatever the name means a moment later.
"""

import asyncio
import socket
from collections.abc import Iterable, Sequence
from typing import Any, Final
from urllib.parse import SplitResult, urljoin, urlsplit
from weakref import WeakValueDictionary

import httpcore2

from sllm import errors
from sllm.addresses import is_public
from sllm.chat.images import MAX_BYTES

FETCH_SECONDS: Final = 10.0
"""That one image may take, with all that it is redirected by."""
_REDIRECTS: Final = 3
_REDIRECTING: Final = frozenset({301, 302, 303, 307, 308})
_FETCHES: Final = 8
"""At once, for one deployment: the slow hosts of one hold up no other's."""

_FAILURES: Final = (
    httpcore2.NetworkError,
    httpcore2.TimeoutException,
    httpcore2.ProtocolError,
)


class ImageFetcher:
    """Belongs to the event loop."""

    def __init__(self) -> None:
        self._places: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    async def fetch(self, url: str, hosts: Sequence[str], deployment: str = "") -> bytes:
        """The file at a URL.

        Args:
            url: of http or https.
            hosts: that the deployment allows; see `DeploymentSpec.image_hosts`.
            deployment: whose places it takes one of.

        Raises:
            errors.ImageUrlRefused: It may not be fetched; says which rule is against it.
            errors.InvalidImage: There is none, or it is too large.
            errors.ImageUnavailable: The host does not answer as it should.
        """
        places = self._places.setdefault(deployment, asyncio.Semaphore(_FETCHES))
        try:
            async with places, asyncio.timeout(FETCH_SECONDS):
                for _ in range(1 + _REDIRECTS):
                    found = await _get(url, hosts)
                    if isinstance(found, bytes):
                        return found
                    url = found
        except _FAILURES as error:
            raise errors.ImageUnavailable(f"{_shown(url)} cannot be fetched: {error!r}") from error
        except TimeoutError as error:
            raise errors.ImageUnavailable(
                f"{_shown(url)} has not come within {FETCH_SECONDS:g} s"
            ) from error
        raise errors.InvalidImage(f"{_shown(url)} redirects more than {_REDIRECTS} times")


async def _get(url: str, hosts: Sequence[str]) -> bytes | str:
    """The file, or where to look for it instead."""
    parts = _allowed(url, hosts)
    named = (parts.hostname or "") in {one for one in hosts if not one.startswith("*")}
    async with (
        httpcore2.AsyncConnectionPool(network_backend=_Checked(may_be_private=named)) as pool,
        pool.stream("GET", url, headers={"accept": "image/*"}) as response,
    ):
        if response.status in _REDIRECTING:
            return _redirected(url, _header(response, b"location"))
        if response.status != 200:
            kind = errors.ImageUnavailable if response.status >= 500 else errors.InvalidImage
            raise kind(f"{_shown(url)} answers with status {response.status}")
        return await _read(response, url)


async def _read(response: httpcore2.Response, url: str) -> bytes:
    content = bytearray()
    async for part in response.aiter_stream():
        content += part
        if len(content) > MAX_BYTES:
            raise errors.InvalidImage(f"{_shown(url)} has more than {MAX_BYTES} bytes")
    return bytes(content)


def _redirected(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError as error:
        raise errors.InvalidImage(
            f"{_shown(url)} redirects to what is no URL: {_shown(location)}: {error}"
        ) from error


def _header(response: httpcore2.Response, name: bytes) -> str:
    found = (value for key, value in response.headers if key.lower() == name)
    return next(found, b"").decode("latin-1")


def _allowed(url: str, hosts: Iterable[str]) -> SplitResult:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError as error:
        raise errors.InvalidImage(f"{url!r:.200} is no URL: {error}") from error
    if parts.scheme not in ("http", "https") or not host or not url.isascii():
        raise errors.ImageUrlRefused(
            f"{_shown(url)}: images are fetched by http and https alone; send what is elsewhere as "
            "bytes"
        )
    if "@" in parts.netloc:
        raise errors.ImageUrlRefused(f"a URL with credentials ({parts.scheme}://…@) is not fetched")
    if not any(_matches(host, one) for one in hosts):
        raise errors.ImageUrlRefused(
            f"the deployment does not have images fetched from {host:.200}: send them as bytes, or "
            "deploy it with this host among its image_hosts",
            metadata={"host": host},
        )
    return parts


def _matches(host: str, pattern: str) -> bool:
    if pattern.startswith("*."):
        return host.endswith(pattern[1:])
    return pattern in ("*", host)


def _shown(url: str) -> str:
    """A URL without what may be secret in it."""
    return repr(url.partition("?")[0])[:200]


class _Checked(httpcore2.AsyncNetworkBackend):
    """Connects to addresses that may be connected to, and to no other."""

    def __init__(self, *, may_be_private: bool) -> None:
        self._may_be_private = may_be_private
        self._under = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self, host: str, port: int, *args: Any, **kwargs: Any
    ) -> httpcore2.AsyncNetworkStream:
        """Connects to the first of a host's addresses that is allowed.

        Raises:
            errors.ImageUrlRefused: None is.
            errors.InvalidImage: No host can have the name.
            httpcore2.ConnectError: There is none, or it does not answer.
        """
        try:
            found = await asyncio.get_running_loop().getaddrinfo(
                host, port, type=socket.SOCK_STREAM
            )
        except UnicodeError as error:  # a part of a name is empty, or longer than 63 letters
            raise errors.InvalidImage(f"{host!r:.200} is no name of a host: {error}") from error
        except OSError as error:
            raise httpcore2.ConnectError(str(error)) from error
        addresses = [str(one[4][0]) for one in found]
        allowed = [one for one in addresses if self._may_be_private or is_public(one)]
        if not allowed:
            raise errors.ImageUrlRefused(
                f"{host:.200} has no public address ({addresses[0]}); a deployment allows such a "
                "host by its whole name alone",
                metadata={"host": host},
            )
        return await self._under.connect_tcp(allowed[0], port, *args, **kwargs)
