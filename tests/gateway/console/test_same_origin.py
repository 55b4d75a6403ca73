"""Pages of other origins are kept off, by whichever way they come."""

import httpx2
import pytest
from starlette.responses import PlainTextResponse

from sllm.gateway.console.same_origin import SameOrigin
from tests.client.fake_control import FakeControl
from tests.gateway.connect.serving import METHODS

SIMPLE = (
    "",
    "text/plain",
    "text/plain; charset=utf-8",
    "application/x-www-form-urlencoded",
    "multipart/form-data; boundary=x",
)
"""Types that a page may send anywhere without asking first, as a form does."""
FOREIGN = {
    "another origin": {"origin": "http://evil.example"},
    "no origin in particular": {"origin": "null"},
    "a name of its own that leads here": {"host": "evil.example"},
    "the same, as its own page": {"host": "evil.example", "origin": "http://evil.example"},
}

HERE = ("127.0.0.1", 8080)
ELSEWHERE = ("192.0.2.7", 8080)

CASES: dict[str, tuple[tuple[str, int], dict[str, str], bool]] = {
    "a browser on this machine": (HERE, {"host": "localhost:8080"}, True),
    "by address": (HERE, {"host": "127.0.0.1:8080"}, True),
    "by IPv6": (("::1", 8080), {"host": "[::1]:8080"}, True),
    "by IPv4 within IPv6": (("::ffff:127.0.0.1", 8080), {"host": "127.0.0.1:8080"}, True),
    "DNS, and IPv4 within IPv6": (("::ffff:127.0.0.1", 1), {"host": "evil.example"}, False),
    "a name of localhost": (HERE, {"host": "sllm.localhost:8080"}, True),
    "a proxy that is allowed": (HERE, {"host": "models.example"}, True),
    "its own page": (HERE, {"host": "localhost:8080", "origin": "http://localhost:8080"}, True),
    "behind TLS": (ELSEWHERE, {"host": "a.example", "origin": "https://a.example"}, True),
    "curl from elsewhere": (ELSEWHERE, {"host": "gateway:8080"}, True),
    "a proxy's page": (HERE, {"host": "localhost", "origin": "https://models.example"}, True),
    "DNS that leads here": (HERE, {"host": "evil.example:8080"}, False),
    "one that looks like it": (HERE, {"host": "localhost.evil.example"}, False),
    "no host at all": (HERE, {"host": ""}, False),
    "another origin": (HERE, {"host": "localhost:8080", "origin": "http://evil.example"}, False),
    "another port": (HERE, {"host": "localhost:8080", "origin": "http://localhost:1"}, False),
    "no origin in particular": (HERE, {"host": "localhost:8080", "origin": "null"}, False),
    "another one, from afar": (ELSEWHERE, {"host": "a.example", "origin": "http://b"}, False),
}


@pytest.mark.parametrize("case", CASES)
async def test_only_its_own_pages_may_call(case: str) -> None:
    server, headers, allowed = CASES[case]
    app = SameOrigin(PlainTextResponse("here"), hosts=["models.example"])
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/",
        "server": server,
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }
    sent: list[dict[str, object]] = []

    async def send(message: object) -> None:
        assert isinstance(message, dict)
        sent.append(message)

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": b"", "more_body": False}

    await app(scope, receive, send)
    assert sent[0]["status"] == (200 if allowed else 403)
    if not allowed:
        assert b'"error": {"message": ' in bytes(sent[1]["body"])  # type: ignore[call-overload]


@pytest.mark.parametrize("kind", SIMPLE)
async def test_what_a_page_may_send_anywhere_calls_nothing(
    control: FakeControl, http: httpx2.AsyncClient, kind: str
) -> None:
    """Of all calls, also if a browser should leave the origin out."""
    headers = {"content-type": kind} if kind else {}
    for method in METHODS.values():
        answer = await http.post(method.path, content=b"{}", headers=headers)
        assert answer.status_code == 415, method.path
    assert not control.requests


async def test_nothing_is_called_by_get(control: FakeControl, http: httpx2.AsyncClient) -> None:
    for method in METHODS.values():
        answer = await http.get(f"{method.path}?connect=v1&encoding=json&message=%7B%7D")
        assert answer.status_code in (404, 405, 415), method.path
    assert not control.requests


@pytest.mark.parametrize("case", FOREIGN)
@pytest.mark.parametrize(
    "path", ["/serverlessllm.v1.DeploymentService/Deploy", "/v1/chat/completions", "/v1/files"]
)
async def test_a_foreign_page_has_nothing_done(
    control: FakeControl, http: httpx2.AsyncClient, case: str, path: str
) -> None:
    asked = await http.post(path, json={"name": "tiny"}, headers=FOREIGN[case])
    assert asked.status_code == 403
    preflight = {**FOREIGN[case], "access-control-request-method": "POST"}
    allowed = await http.options(path, headers=preflight)
    assert allowed.status_code in (403, 404, 405)
    assert "access-control-allow-origin" not in allowed.headers
    assert not control.requests
