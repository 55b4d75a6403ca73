"""Images by URL: from allowed hosts, at addresses that were looked at, within bounds."""

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from sllm import errors
from sllm.chat.images import MAX_BYTES
from sllm.control.routing import image_urls
from sllm.control.routing.image_urls import ImageFetcher

FILE = b"whatever"
HERE = ("127.0.0.1",)
_LEADING = {
    "/there": "/file",
    "/elsewhere": "http://localhost:{port}/file",
    "/local": "file:///etc/passwd",
    "/round": "/round",
    "/unnamed": "http://images..example.com/file",
}


class Site:
    """A web server on loopback, and what it was asked for."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.port = 0

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.paths.append(request.path)
        if request.path in _LEADING:
            raise web.HTTPFound(_LEADING[request.path].format(port=self.port))
        match request.path:
            case "/nowhere":
                return web.Response(status=302, headers={"location": "http://[x]/?key=secret"})
            case "/file":
                return web.Response(body=FILE)
            case "/large":
                return web.Response(body=bytes(MAX_BYTES + 1))
            case "/endless":
                return await self._endless(request)
            case "/slow":
                await asyncio.sleep(60)
        raise web.HTTPServiceUnavailable if request.path == "/broken" else web.HTTPNotFound

    async def _endless(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        while True:  # until the other side has had enough
            await response.write(bytes(1 << 20))


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    site, app = Site(), web.Application()
    app.router.add_route("*", "/{path:.*}", site.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    listener = web.TCPSite(runner, "127.0.0.1", 0)
    await listener.start()
    site.port = runner.addresses[0][1]
    yield site
    await runner.cleanup()


async def test_what_a_deployment_allows_is_fetched(site: Site) -> None:
    fetcher = ImageFetcher()
    assert await fetcher.fetch(site.url("/file"), HERE) == FILE
    assert await fetcher.fetch(site.url("/there"), HERE) == FILE
    assert site.paths == ["/file", "/there", "/file"]


@pytest.mark.parametrize(
    ("path", "hosts"),
    [
        ("/file", ()),
        ("/file", ("example.com", "*.example.com")),
        ("/file", ("*",)),  # any host, but none of this machine's
        ("/file", ("*.0.0.1",)),
        ("/elsewhere", HERE),
        ("/local", HERE),
    ],
)
async def test_others_are_not_connected_to(site: Site, path: str, hosts: tuple[str, ...]) -> None:
    with pytest.raises(errors.ImageUrlRefused):
        await ImageFetcher().fetch(site.url(path), hosts)
    assert "/file" not in site.paths


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://127.0.0.1/x",
        "gopher://127.0.0.1",
        "http:///x",
        "//127.0.0.1/x",
        "http://me:secret@127.0.0.1/x",
    ],
)
async def test_only_plain_urls_of_the_web_are_followed(url: str) -> None:
    with pytest.raises(errors.ImageUrlRefused) as failure:
        await ImageFetcher().fetch(url, HERE)
    assert "secret" not in failure.value.message


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1"),
        *("0.0.0.0", "224.0.0.1", "::1", "fe80::1", "fd00::1", "::ffff:127.0.0.1"),
        *("64:ff9b::7f00:1", "2002:7f00:1::"),
    ],
)
async def test_a_name_that_leads_inside_is_refused(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET

    async def lookup(*args: Any, **options: Any) -> list[Any]:
        return [(family, socket.SOCK_STREAM, 6, "", (address, 80))]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", lookup)
    with pytest.raises(errors.ImageUrlRefused, match="no public address"):
        await ImageFetcher().fetch("http://images.example.com/x", ("*.example.com",))


async def test_a_pattern_is_no_name_of_a_host(monkeypatch: pytest.MonkeyPatch, site: Site) -> None:
    """Whoever has a name may have all below it lead inside, `*.` as well."""
    loop = asyncio.get_running_loop()
    lookup_of = loop.getaddrinfo

    async def lookup(host: Any, *args: Any, **options: Any) -> Any:
        return await lookup_of("127.0.0.1", *args, **options)

    monkeypatch.setattr(loop, "getaddrinfo", lookup)
    for pattern in ("*", "*.example.com"):
        with pytest.raises(errors.ImageUrlRefused, match="no public address"):
            await ImageFetcher().fetch(site.url("/file", pattern), (pattern,))
    assert not site.paths


@pytest.mark.parametrize("host", ["images..example.com", f"{'x' * 64}.example.com", ".example.com"])
async def test_what_is_no_name_of_a_host_is_told(host: str) -> None:
    with pytest.raises(errors.InvalidImage, match="is no name of a host"):
        await ImageFetcher().fetch(f"http://{host}/x", ("*.example.com",))


async def test_the_address_that_was_looked_at_is_connected_to(
    monkeypatch: pytest.MonkeyPatch, site: Site
) -> None:
    """Whoever owns a name may have it mean another address at each look."""
    asked: list[str] = []
    loop = asyncio.get_running_loop()
    lookup_of = loop.getaddrinfo

    async def lookup(host: Any, *args: Any, **options: Any) -> Any:
        asked.append(str(host))
        name = "127.0.0.1" if host == "images.example.com" else host
        return await lookup_of(name, *args, **options)

    monkeypatch.setattr(loop, "getaddrinfo", lookup)
    found = await ImageFetcher().fetch(
        site.url("/file", "images.example.com"), ("images.example.com",)
    )
    assert found == FILE
    assert asked.count("images.example.com") == 1


@pytest.mark.parametrize(
    ("path", "kind", "why"),
    [
        ("/large", errors.InvalidImage, "more than 8388608 bytes"),
        ("/endless", errors.InvalidImage, "more than 8388608 bytes"),
        ("/nothing", errors.InvalidImage, "status 404"),
        ("/round", errors.InvalidImage, "redirects more than 3 times"),
        ("/nowhere", errors.InvalidImage, "redirects to what is no URL"),
        ("/unnamed", errors.InvalidImage, "is no name of a host"),
        ("/broken", errors.ImageUnavailable, "status 503"),
        ("/slow", errors.ImageUnavailable, "within 0.3 s"),
    ],
)
async def test_what_does_not_come_as_it_should_is_told(
    monkeypatch: pytest.MonkeyPatch,
    site: Site,
    path: str,
    kind: type[errors.SllmError],
    why: str,
) -> None:
    if path == "/slow":
        monkeypatch.setattr(image_urls, "FETCH_SECONDS", 0.3)
    with pytest.raises(kind, match=why) as failure:
        await ImageFetcher().fetch(site.url(f"{path}?key=secret"), (*HERE, "*.example.com"))
    assert "secret" not in failure.value.message


async def test_nobody_there_is_told() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(errors.ImageUnavailable):
            await ImageFetcher().fetch(f"http://127.0.0.1:{port}/x", HERE)
