"""Callers who are slow, large, or no callers at all: refused in sllm's own words, and forgotten."""

import asyncio
import json
import random
from base64 import b64encode
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sllm import errors
from sllm.chat.images import MAX_BYTES, MAX_BYTES_OF_ALL
from sllm.gateway.anthropic.requests import MessageRequest
from sllm.gateway.bodies import checked
from sllm.gateway.control_planes import ControlPlanes
from sllm.gateway.openai.chat_request import ChatRequest
from sllm.gateway.openai.completion_request import CompletionRequest
from tests.client.fake_control import FakeControl, Silence
from tests.client.messages import generation
from tests.gateway.conftest import Open
from tests.gateway.raw import connected, head_of, post
from tests.properties import examples
from tests.support import assert_eventually

CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}

DEPLOY = "/serverlessllm.v1.DeploymentService/Deploy"

BODIES: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "is no JSON"),
    "no JSON": (b"{", "is no JSON"),
    "no object": (b"[]", "must be a JSON object"),
    "no text": (b'{"model": "\xff"}', "is no JSON"),
    "deep": (b"[" * 100_000, "is no JSON"),
    "half a character": (json.dumps({**CHAT, "model": "\ud800"}).encode(), "UTF-8"),
    "a number too large": (b'{"seed": ' + b"9" * 5000 + b"}", "is no JSON"),
    "no field of ours": (json.dumps({**CHAT, "foo": 1}).encode(), "foo: there is no such field"),
    "another type": (json.dumps({**CHAT, "temperature": "hot"}).encode(), "temperature: "),
    "no messages": (json.dumps({"model": "tiny"}).encode(), "messages: "),
    "no number": (json.dumps({**CHAT, "temperature": float("nan")}).encode(), "temperature: "),
}


@pytest.mark.parametrize("what", BODIES)
async def test_bodies_that_are_none(http: httpx2.AsyncClient, what: str) -> None:
    body, said = BODIES[what]
    answer = await http.post("/v1/chat/completions", content=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "INVALID_ARGUMENT")
    assert error["type"] == "invalid_request_error"
    assert said in error["message"]
    assert answer.headers["x-request-id"]


HEADERS = {
    "x-request-id": ["a b", "é", "x" * 129],
    "x-sllm-priority": ["high", "1.5", "inf"],
    "x-sllm-keep-alive": ["-1", "nan"],
    "x-sllm-deadline": ["soon"],
}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, vs in HEADERS.items() for v in vs])
async def test_headers_that_say_nothing(http: httpx2.AsyncClient, name: str, value: str) -> None:
    headers = [(name.encode(), value.encode())]
    answer = await http.post("/v1/chat/completions", json=CHAT, headers=headers)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, name)


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/v1/nothing"), ("GET", "/v1/chat/completions"), ("PUT", "/v1/models")],
)
async def test_what_is_not_there(http: httpx2.AsyncClient, method: str, path: str) -> None:
    answer = await http.request(method, path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "NOT_SERVED")


async def test_a_body_that_is_too_large(opened: Open) -> None:
    url = await opened(max_body_bytes=1000)
    async with httpx2.AsyncClient(base_url=url) as http:
        answer = await http.post("/v1/chat/completions", content=b"x" * 100_000)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "INVALID_ARGUMENT")


async def test_as_many_bytes_of_images_as_a_request_may_have_go_through(
    http: httpx2.AsyncClient, control: FakeControl
) -> None:
    """What is more is refused where images are looked at, which says why."""
    control.reply("Generate", *generation())
    url = "data:image/png;base64," + b64encode(bytes(MAX_BYTES)).decode()
    image = {"type": "image_url", "image_url": {"url": url}}
    images = [image] * (MAX_BYTES_OF_ALL // MAX_BYTES)
    body = {**CHAT, "messages": [{"role": "user", "content": images}]}
    answer = await http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200
    (asked,) = control.requests["Generate"]
    parts = asked.messages.messages[0].parts
    assert sum(len(part.image.data) for part in parts) == MAX_BYTES_OF_ALL


@pytest.mark.parametrize(("path", "status"), [("/v1/chat/completions", 413), (DEPLOY, 429)])
async def test_who_is_still_writing_reads_that_it_is_too_large(
    opened: Open, path: str, status: int
) -> None:
    """The connection is not reset under the answer."""
    url = await opened(max_body_bytes=1000)
    body = b"x" * (32 * 1024**2)
    for _ in range(3):
        async with connected(url) as (reader, writer):
            kind = "connection: close\r\ncontent-type: application/json\r\n"
            writer.write(post(path, body, kind))
            await asyncio.wait_for(writer.drain(), 10)
            assert f" {status} " in await head_of(reader)


async def test_a_body_that_does_not_come(opened: Open) -> None:
    url = await opened(body_seconds=0.1)
    async with connected(url) as (reader, writer):
        writer.write(post("/v1/chat/completions", CHAT)[:-5])
        assert " 408 " in await head_of(reader)


HEADS = {
    "nothing": b"",
    "half a head": b"GET / HTTP/1.1\r\nhost: localhost\r\n",
    "after an answer": b"GET /none HTTP/1.1\r\nhost: localhost\r\n\r\nGET ",
}


@pytest.mark.parametrize("what", HEADS)
async def test_a_head_that_does_not_come(opened: Open, what: str) -> None:
    url = await opened(header_seconds=0.2, idle_seconds=1.0)
    async with connected(url) as (reader, writer):
        writer.write(HEADS[what])
        told = await asyncio.wait_for(reader.read(), 10)
        assert b" 408 " in told


async def test_a_head_that_does_not_end(url: str) -> None:
    async with connected(url) as (reader, writer):
        writer.write(b"GET / HTTP/1.1\r\n")
        for _ in range(100):
            writer.write(b"a: " + b"x" * 1000 + b"\r\n")
        assert b" 431 " in await asyncio.wait_for(reader.read(), 10)


async def test_more_than_may_be_under_way(control: FakeControl, opened: Open) -> None:
    url = await opened(max_requests=1)
    control.reply("Generate", *generation()[:1], Silence())
    async with httpx2.AsyncClient(base_url=url) as http, connected(url) as (_, writer):
        writer.write(post("/v1/chat/completions", CHAT))
        await assert_eventually(lambda: control.requests["Generate"])
        refused = await http.post("/v1/chat/completions", json=CHAT)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "QUEUE_FULL")
        assert refused.headers["retry-after"] == "1"
        writer.transport.abort()
        await assert_eventually(lambda: control.abandoned)
        control.reply("Generate", *generation())

        async def taken() -> bool:
            return (await http.post("/v1/chat/completions", json=CHAT)).status_code == 200

        await assert_eventually(taken)


async def test_random_bytes_do_no_harm(control: FakeControl, url: str) -> None:
    chance = random.Random(1)
    good = post("/v1/chat/completions", CHAT)
    for _ in range(200):
        bad = bytearray(good)
        for _ in range(chance.randrange(1, 20)):
            bad[chance.randrange(len(bad))] = chance.randrange(256)
        control.reply("Generate", *generation())
        async with connected(url) as (reader, writer):
            writer.write(bytes(bad))
            writer.write_eof()
            head = await asyncio.wait_for(reader.read(20), 10)
            assert not head.startswith(b"HTTP/1.1 5"), bytes(bad)
    async with httpx2.AsyncClient(base_url=url) as http:
        control.reply("Generate", *generation())
        assert (await http.post("/v1/chat/completions", json=CHAT)).status_code == 200


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


KEYS = (
    *("role", "content", "type", "text", "function", "name", "parameters", "tool_calls", "id"),
    *("input", "tool_use_id", "input_schema", "format", "effort"),
    *("arguments", "json_schema", "schema", "regex", "choice", "grammar", "json_object"),
)
PART = st.recursive(
    st.dictionaries(
        st.sampled_from(KEYS),
        JSON | st.sampled_from(["function", "user", "text", "tool_use", "tool_result"]),
    ),
    lambda inner: st.dictionaries(st.sampled_from(KEYS), inner | st.lists(inner, max_size=2)),
    max_leaves=4,
)
PARTS = st.lists(PART, max_size=2)
FORMS = (
    *("tool_choice", "structured_output", "response_format", "template_arguments"),
    *("output_config", "thinking", "system"),
)


def _bodies(kind: Any, good: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    names = [*kind.model_fields, *kind.REFUSED, *kind.HARMLESS]
    wrong = st.dictionaries(st.sampled_from(names), JSON, max_size=3)
    inner = st.fixed_dictionaries({}, optional=dict.fromkeys(("messages", "tools"), PARTS))
    forms = st.fixed_dictionaries({}, optional=dict.fromkeys(FORMS, PART))
    return st.one_of(wrong, inner, forms).map(lambda found: {**good, **found})


@examples(80)
@given(_bodies(ChatRequest, CHAT))
def test_any_conversation_is_taken_or_refused(body: dict[str, Any]) -> None:
    asyncio.run(_taken(lambda: checked(ChatRequest, body).arguments()))


@examples(80)
@given(_bodies(CompletionRequest, {"model": "tiny", "prompt": "a"}))
def test_any_completion_is_taken_or_refused(body: dict[str, Any]) -> None:
    def arguments() -> dict[str, Any]:
        request = checked(CompletionRequest, body)
        return {**request.arguments(), **request.prompts()[0]}

    asyncio.run(_taken(arguments))


@examples(80)
@given(_bodies(MessageRequest, {**CHAT, "max_tokens": 3}))
def test_any_message_is_taken_or_refused(body: dict[str, Any]) -> None:
    asyncio.run(_taken(lambda: checked(MessageRequest, body).arguments()))


async def _taken(arguments: Callable[[], dict[str, Any]]) -> None:
    """What is no refusal comes as far as to a control plane, which is not there."""
    planes = ControlPlanes(["127.0.0.1:1"])
    try:
        with pytest.raises((errors.InvalidRequest, errors.Unreachable)):
            await planes.begin("tiny", arguments())
    finally:
        await planes.close()


H2C = "connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAEAAEAAAAIAAAAB\r\n"


def _chunked(body: Any, trailers: str = "") -> bytes:
    encoded = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n{H2C}"
    start = f"{head}transfer-encoding: chunked\r\n\r\n{len(encoded):x}\r\n".encode()
    return start + encoded + f"\r\n0\r\n{trailers}\r\n".encode()


@pytest.mark.parametrize("step", [1, 7, 10_000])
@pytest.mark.parametrize(
    "asked", [post("/v1/chat/completions", CHAT, H2C), _chunked(CHAT)], ids=["whole", "chunked"]
)
async def test_an_offer_of_another_protocol_is_passed_over(
    control: FakeControl, url: str, asked: bytes, step: int
) -> None:
    """As Java's client makes it with each request. The next one on the connection is read, too."""
    async with connected(url) as (reader, writer):
        for _ in range(2):
            control.reply("Generate", *generation())
            for place in range(0, len(asked), step):
                writer.write(asked[place : place + step])
                await writer.drain()
            head = await head_of(reader)
            assert " 200 " in head
            await reader.readexactly(int(head.partition("content-length: ")[2].split()[0]))
        writer.write(b"CONNECT localhost:1 HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert " 400 " in await head_of(reader)


ENDLESS = {
    "a head of many lines": b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 20_000,
    "a head of one line": b"GET / HTTP/1.1\r\na: " + b"x" * 300_000,
    "a path": b"GET /" + b"x" * 300_000,
    "trailers": _chunked(CHAT)[:-2] + b"a: b\r\n" * 20_000,
    "a trailer": _chunked(CHAT)[:-2] + b"a: " + b"x" * 300_000,
    "an extension of a chunk": _chunked(CHAT)[:-7] + b"\r\n1;" + b"x" * 300_000,
}


@pytest.mark.parametrize("what", ENDLESS)
async def test_what_nothing_comes_of_is_not_kept(control: FakeControl, url: str, what: str) -> None:
    control.reply("Generate", *generation())
    async with connected(url) as (reader, writer):
        writer.write(ENDLESS[what])
        with suppress(ConnectionResetError):  # it was still writing
            told = await asyncio.wait_for(reader.read(), 10)
            assert b" 431 " in told or what == "an extension of a chunk"


async def test_trailers_are_no_headers(control: FakeControl, url: str) -> None:
    control.reply("Generate", *generation())
    async with connected(url) as (reader, writer):
        writer.write(_chunked(CHAT, "x-request-id: late\r\n"))
        head = await head_of(reader)
        assert " 200 " in head
        assert "late" not in head


@pytest.mark.parametrize("then", [b"GET / HTTP/1.1\r\na: ", b"\0\0\0", b"GET / HTTP/1.1\r\n" * 9])
@pytest.mark.parametrize("size", [1, 200_000])
async def test_what_follows_a_request_does_not_disturb_its_answer(
    control: FakeControl, opened: Open, then: bytes, size: int
) -> None:
    """It is late, too large, or nothing: the answer under way is whole, and the last."""
    url = await opened(header_seconds=0.1, idle_seconds=1.0)
    first: list[Any] = [*generation()[:4], Silence()]
    control.reply("Generate", *first)
    async with connected(url) as (reader, writer):
        writer.write(post("/v1/chat/completions", {**CHAT, "stream": True}))
        assert " 200 " in await head_of(reader)
        writer.write(then + b"x" * size)
        said = b""
        with suppress(TimeoutError):
            async with asyncio.timeout(0.3):
                while not reader.at_eof():
                    said += await reader.readline()
        assert not reader.at_eof(), "the answer has broken off"
        assert b"HTTP/1.1" not in said
