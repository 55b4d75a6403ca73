"""Servers that are slow, broken, or lie: never a wrong tensor, and an end within bounds."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web

from sllm.errors import (
    InvalidSource,
    SllmError,
    SourceForbidden,
    SourceNotFound,
    SourceUnavailable,
)
from tests.checkpoint.checkpoints import assert_same, random_weights, tensors_on_disk, write_model
from tests.checkpoint.remote.sources import bring
from tests.checkpoint.remote.web import Fault, Hit, WebServer, answer_with

WEIGHTS = "model.safetensors"
BOUND_SECONDS = 60.0
"""Far above what any of these takes, and far below a hang."""

Answer = Callable[[web.Request, Hit, bytes], object]


def on_weights(fault: Fault, times: int = 1_000_000) -> Fault:
    """The fault, for the first so many requests for weights."""
    left = times

    async def answer(request: web.Request, hit: Hit, content: bytes) -> web.StreamResponse | None:
        nonlocal left
        if hit.name != WEIGHTS or hit.method != "GET" or not left:
            return None
        left -= 1
        return await fault(request, hit, content)

    return answer


def part(hit: Hit, content: bytes) -> bytes:
    return content[hit.start : hit.start + hit.size]


def status(code: int) -> Fault:
    async def answer(request: web.Request, hit: Hit, content: bytes) -> web.StreamResponse:
        return web.Response(status=code, headers={"Retry-After": "0"})

    return answer


async def cut(request: web.Request, hit: Hit, content: bytes) -> web.StreamResponse:
    """The connection breaks after half of it."""
    body = part(hit, content)
    return await answer_with(request, hit, body, len(content), stop_after=len(body) // 2)


async def stall(request: web.Request, hit: Hit, content: bytes) -> web.StreamResponse:
    """Silence after half of it."""
    body = part(hit, content)
    return await answer_with(
        request, hit, body, len(content), stop_after=len(body) // 2, stall=20.0
    )


async def end_early(request: web.Request, hit: Hit, content: bytes) -> web.StreamResponse:
    """A whole answer of fewer bytes than it says that it has."""
    body = part(hit, content)
    return await answer_with(request, hit, body[:-100], len(content), claimed=len(body))


async def give_less(request: web.Request, hit: Hit, content: bytes) -> web.StreamResponse:
    """A smaller range than the one asked for."""
    return await answer_with(request, hit, part(hit, content)[:-100], len(content))


async def say_too_much(request: web.Request, hit: Hit, content: bytes) -> web.StreamResponse:
    """An answer that is cut where its Content-Length says more."""
    body = part(hit, content)
    return await answer_with(request, hit, body, len(content), stop_after=len(body) - 1)


async def change(request: web.Request, hit: Hit, content: bytes) -> web.StreamResponse:
    """Another file of the same size."""
    return await answer_with(request, hit, bytes(hit.size), len(content), tag='"2"')


async def grow(request: web.Request, hit: Hit, content: bytes) -> web.StreamResponse:
    """Another size under the same tag."""
    return await answer_with(request, hit, part(hit, content), len(content) + 1)


async def whole(request: web.Request, hit: Hit, content: bytes) -> web.StreamResponse:
    """The range is ignored."""
    return web.Response(body=content)


async def elsewhere(request: web.Request, hit: Hit, content: bytes) -> web.StreamResponse:
    """Another range than the one asked for."""
    moved = replace(hit, start=hit.start + 64)
    return await answer_with(request, moved, part(hit, content), len(content))


@pytest.fixture
def model(web_server: WebServer) -> WebServer:
    write_model(web_server.root)
    return web_server


@pytest.mark.parametrize(
    "fault",
    [status(500), status(503), status(429), cut, stall, end_early, say_too_much],
    ids=["500", "503", "429", "cut", "stall", "end_early", "say_too_much"],
)
def test_what_passes_is_borne(model: WebServer, tmp_path: Path, fault: Fault) -> None:
    model.fault = on_weights(fault, times=2)
    brought = bring(model.url, tmp_path)
    assert_same(tensors_on_disk(brought.manifest, brought.directory), random_weights())


def test_after_a_cut_only_the_rest_is_asked_for(model: WebServer, tmp_path: Path) -> None:
    model.fault = on_weights(cut, times=1)
    bring(model.url, tmp_path)
    first, second = [hit for hit in model.hits if hit.name == WEIGHTS and hit.method == "GET"][:2]
    assert second.start == first.start + first.size // 2


@pytest.mark.parametrize(
    ("fault", "error", "says"),
    [
        (status(500), SourceUnavailable, "500"),
        (status(429), SourceUnavailable, "429"),
        (status(404), SourceNotFound, "does not exist"),
        (status(410), SourceUnavailable, "410"),
        (status(401), SourceForbidden, "credentials"),
        (status(403), SourceForbidden, "credentials"),
        (stall, SourceUnavailable, "try again"),
        (end_early, SourceUnavailable, "ending answers early"),
        (give_less, SourceUnavailable, "try again"),
        (change, SourceUnavailable, "was changed while it was read"),
        (grow, SourceUnavailable, "was changed while it was read"),
        (whole, InvalidSource, "ranges"),
        (elsewhere, SourceUnavailable, "try again"),
    ],
    ids=[
        "500",
        "429",
        "404",
        "410",
        "401",
        "403",
        "stall",
        "end_early",
        "give_less",
        "change",
        "grow",
        "whole",
        "elsewhere",
    ],
)
def test_what_stays_is_a_typed_error_in_time(
    model: WebServer,
    tmp_path: Path,
    fault: Fault,
    error: type[SllmError],
    says: str,
) -> None:
    model.fault = on_weights(fault)
    began = time.monotonic()
    with pytest.raises(error, match=says) as caught:
        bring(model.url, tmp_path)
    assert time.monotonic() - began < BOUND_SECONDS
    assert f"{model.url}/{WEIGHTS}" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_size_that_was_a_lie_is_noticed(model: WebServer, tmp_path: Path) -> None:
    async def lie(request: web.Request, hit: Hit, content: bytes) -> web.StreamResponse | None:
        if hit.name != WEIGHTS or hit.method != "HEAD":
            return None
        answer = web.StreamResponse(headers={"ETag": hit.tag})
        answer.content_length = len(content) + 5000
        await answer.prepare(request)
        return answer

    model.fault = lie
    with pytest.raises(SourceUnavailable, match="was changed while it was read"):
        bring(model.url, tmp_path)


@pytest.mark.parametrize(
    ("names", "size"),
    [
        (("model.safetensors.index.json",), 1 << 40),
        (("manifest.json",), 1 << 40),
        (("vocab.json", "vocab.txt", "merges.txt"), 200 << 20),
    ],
)
def test_what_servers_say_of_small_files_fills_no_memory(
    model: WebServer, tmp_path: Path, names: tuple[str, ...], size: int
) -> None:
    async def lie(request: web.Request, hit: Hit, content: bytes) -> web.StreamResponse | None:
        if hit.name not in names or hit.method != "HEAD":
            return None
        return web.Response(headers={"Content-Length": str(size), "ETag": '"x"'})

    model.fault = lie
    with pytest.raises(InvalidSource, match="at most"):
        bring(model.url, tmp_path)


def test_a_server_that_is_gone_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    server = WebServer(tmp_path / "empty")
    server.close()
    with pytest.raises(SourceUnavailable, match="try again"):
        bring(server.url, tmp_path)
