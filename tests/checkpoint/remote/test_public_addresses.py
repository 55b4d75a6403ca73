"""Web servers at private addresses are fetched from only if that is allowed."""

import http.client
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from aiohttp import web

from sllm.checkpoint.remote import public_addresses
from sllm.checkpoint.remote.options import RemoteOptions
from sllm.checkpoint.remote.public_addresses import PublicProxy
from sllm.checkpoint.remote.remotes import Remotes
from sllm.checkpoint.sources.policy import SourcePolicy, SourceRule
from sllm.errors import SllmError, SourceForbidden, SourceNotAllowed, SourceUnavailable
from tests.checkpoint.checkpoints import write_model
from tests.checkpoint.remote.sources import HASTY, files_of
from tests.checkpoint.remote.web import Hit, WebServer

ONCE = RemoteOptions(connect_seconds=2.0, retries=0, retry_seconds=1.0)
PUBLIC = "93.184.215.14"
MIB = 1 << 20


def naming(host: str) -> SourcePolicy:
    """A list of one web server and everything on it."""
    return SourcePolicy((SourceRule("http", host, ()),))


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "0.0.0.0"])
def test_no_private_address_is_asked_by_default(web_server: WebServer, host: str) -> None:
    url = web_server.url.replace("127.0.0.1", host)
    with (
        Remotes(HASTY, SourcePolicy()) as remotes,
        pytest.raises(SourceNotAllowed, match="--allow"),
    ):
        files_of(remotes, url, web_server.root / "staging")
    assert not web_server.hits


def test_a_host_that_is_listed_may_be_private(web_server: WebServer, tmp_path: Path) -> None:
    write_model(web_server.root)
    host = urlsplit(web_server.url).netloc
    for number, policy in enumerate((naming(host), SourcePolicy(private_addresses=True))):
        with Remotes(HASTY, policy) as remotes:
            assert files_of(remotes, web_server.url, tmp_path / str(number)).tensors


def test_a_redirect_leads_to_no_private_address(web_server: WebServer, tmp_path: Path) -> None:
    parts = urlsplit(web_server.url)

    async def elsewhere(
        request: web.Request, hit: Hit, content: bytes
    ) -> web.StreamResponse | None:
        if request.host.startswith("localhost"):
            return None
        raise web.HTTPFound(f"http://localhost:{parts.port}/{hit.path}")

    write_model(web_server.root)
    web_server.fault = elsewhere
    with Remotes(ONCE, naming(parts.netloc)) as remotes, pytest.raises(SourceForbidden):
        files_of(remotes, web_server.url, tmp_path / "staging")
    assert {hit.headers["Host"] for hit in web_server.hits} == {parts.netloc}


def test_a_name_that_changes_its_address_leads_to_no_private_one(
    web_server: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name's own server says one thing when the name is checked, and another afterwards."""
    answers: Iterator[list[str]] = iter([[PUBLIC]])
    monkeypatch.setattr(
        public_addresses, "_look_up", lambda host, port: next(answers, ["127.0.0.1"])
    )
    url = web_server.url.replace("127.0.0.1", "localhost")
    write_model(web_server.root)
    with Remotes(ONCE, SourcePolicy()) as remotes, pytest.raises(SllmError) as refused:
        files_of(remotes, url, tmp_path / "staging")
    assert isinstance(refused.value, SourceForbidden | SourceUnavailable)
    assert not web_server.hits


@pytest.mark.parametrize(
    ("address", "public"),
    [
        (PUBLIC, True),
        ("2606:2800:21f:cb07:6820:80da:af6b:8b2c", True),
        ("10.0.0.1", False),
        ("172.16.0.1", False),
        ("192.168.0.1", False),
        ("100.64.0.1", False),
        ("169.254.169.254", False),
        ("224.0.0.1", False),
        ("fe80::1%lo", False),
        ("fd00::1", False),
        ("::1", False),
        ("::ffff:10.0.0.1", False),
        ("2002:0a00:0001::", False),
        ("64:ff9b::10.0.0.1", False),
        ("64:ff9b:1::10.0.0.1", False),
        ("::10.0.0.1", False),
        ("::ffff:0:10.0.0.1", False),
        ("fec0::1", False),
        ("168.63.129.16", False),
        ("64:ff9b::93.184.215.14", True),
    ],
)
def test_which_addresses_are_public(
    monkeypatch: pytest.MonkeyPatch, address: str, public: bool
) -> None:
    monkeypatch.setattr(public_addresses, "_look_up", lambda host, port: [address])
    if public:
        public_addresses.check_public("host", 443, lambda host: False)
    else:
        with pytest.raises(SourceNotAllowed):
            public_addresses.check_public("host", 443, lambda host: False)


@pytest.fixture
def proxy() -> Iterator[PublicProxy]:
    """One that lets 127.0.0.1 be connected to, by this name alone."""
    made = PublicProxy(lambda host: host == "127.0.0.1")
    yield made
    made.close()


def tunnel(proxy: PublicProxy, host: str, port: int | None) -> http.client.HTTPConnection:
    made = http.client.HTTPConnection(urlsplit(proxy.url).netloc, timeout=30)
    made.set_tunnel(host, port)
    return made


def test_a_tunnel_carries_all_bytes_both_ways(proxy: PublicProxy, web_server: WebServer) -> None:
    """As for https: what is in it is nothing to the proxy."""
    content = bytes(range(256)) * (32 * MIB // 256)
    (web_server.root / "large").write_bytes(content)
    connection = tunnel(proxy, "127.0.0.1", urlsplit(web_server.url).port)
    for _ in range(2):
        connection.request("GET", "/large", body=content[:MIB])
        assert connection.getresponse().read() == content
    connection.close()


def test_no_tunnel_leads_to_a_private_address(proxy: PublicProxy, web_server: WebServer) -> None:
    connection = tunnel(proxy, "localhost", urlsplit(web_server.url).port)
    with pytest.raises(OSError, match="403"):
        connection.request("GET", "/")
    connection.close()
    assert not web_server.hits


def test_what_does_not_answer_is_told(proxy: PublicProxy) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        connection = tunnel(proxy, "127.0.0.1", nobody.getsockname()[1])
        with pytest.raises(OSError, match="502"):
            connection.request("GET", "/")
    connection.close()


@pytest.mark.parametrize("policy", [SourcePolicy(), SourcePolicy(private_addresses=True)])
def test_the_environments_proxy_is_for_sources(
    web_server: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: SourcePolicy
) -> None:
    write_model(web_server.root / "model")
    monkeypatch.setenv("http_proxy", web_server.url)
    with Remotes(HASTY, policy) as remotes:
        assert files_of(remotes, "http://models.invalid/model", tmp_path / "staging").tensors
    assert {hit.headers["Host"] for hit in web_server.hits} == {"models.invalid"}


@pytest.mark.parametrize("name", ["http_proxy", "all_proxy"])
def test_no_redirect_leads_past_the_environments_proxy(
    web_server: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """What the environment would have reached without its proxy is private, as a rule."""
    parts = urlsplit(web_server.url)
    asked: list[str] = []

    async def elsewhere(
        request: web.Request, hit: Hit, content: bytes
    ) -> web.StreamResponse | None:
        if request.host == "models.invalid":
            raise web.HTTPFound(f"http://localhost:{parts.port}/{hit.path}")
        asked.append(request.raw_path)
        return None

    write_model(web_server.root / "model")
    web_server.fault = elsewhere
    monkeypatch.setenv(name, web_server.url)
    monkeypatch.setenv("no_proxy", "localhost")
    with Remotes(ONCE, SourcePolicy()) as remotes:
        files_of(remotes, "http://models.invalid/model", tmp_path / "staging")
    assert asked
    assert all(path.startswith("http://localhost") for path in asked)  # as proxies are asked


def test_a_server_that_never_answers_holds_up_no_thread(proxy: PublicProxy) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = socket.create_connection(("127.0.0.1", urlsplit(proxy.url).port or 0))
        place = f"http://127.0.0.1:{silent.getsockname()[1]}/model/config.json"
        client.sendall(f"GET {place} HTTP/1.1\r\n\r\n".encode())
        upstream, _ = silent.accept()
        with upstream:
            assert upstream.recv(1 << 16).startswith(b"GET /model/config.json")
            client.close()
            upstream.settimeout(10)
            assert upstream.recv(1) == b""  # the proxy has hung up as well
