"""What no description allows: bytes that are no request, bodies of 100 MB, and callers who dawdle.

Each gives what was answered, by status, and what may not have been: 5xx without a reason of sllm's.
"""

import asyncio
import json
import random
import re
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from tests.gateway.fuzz.description import MODEL

SECONDS: Final = 90.0
"""For any answer: heads have 20 s, bodies 60 s."""
ANSWER_SECONDS: Final = 3.0
"""For an answer to what may be no whole request: then none comes."""
LARGE: Final = 100 * 1024**2
_PART: Final = b"[" * 65536

_REASON: Final = re.compile(rb'"code": ?"[A-Za-z_]+"')
_FAULT: Final = re.compile(rb'"code": ?"(internal|unknown)"', re.IGNORECASE)

CHAT: Final[dict[str, Any]] = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "Hi"}],
    "max_tokens": 2,
}
BODIES: Final[Sequence[tuple[str, dict[str, Any]]]] = (
    ("/v1/chat/completions", CHAT),
    ("/v1/chat/completions", {**CHAT, "stream": True}),
    ("/v1/completions", {"model": MODEL, "prompt": "Hi", "max_tokens": 2}),
    ("/v1/responses", {"model": MODEL, "input": "Hi", "max_output_tokens": 2}),
    ("/v1/messages", CHAT),
    ("/v1/messages/count_tokens", {"model": MODEL, "messages": CHAT["messages"]}),
    ("/v1/embeddings", {"model": MODEL, "input": "Hi"}),
    ("/v1/batches", {"input_file_id": "file-none", "endpoint": "/v1/completions"}),
    ("/v1/files", {}),
    ("/tokenize", {"model": MODEL, "prompt": "Hi"}),
    ("/detokenize", {"model": MODEL, "tokens": [1]}),
    (
        "/serverlessllm.v1.InferenceService/Generate",
        {"deployment": MODEL, "text": "Hi", "maxTokens": 2},
    ),
    ("/serverlessllm.v1.DeploymentService/ListDeployments", {}),
    ("/serverlessllm.v1.BatchService/SubmitBatch", {}),
)
"""Every route that takes a body, and one that it takes."""


@dataclass(slots=True)
class Outcome:
    """What came of many requests."""

    answers: Counter[str] = field(default_factory=Counter)
    """By status; "" where the connection ended without one."""
    wrong: list[str] = field(default_factory=list)
    """Requests with a server's error that sllm has no reason for, and the answer's beginning."""

    def take(self, sent: bytes, answer: bytes) -> None:
        """Counts an answer."""
        status = answer[9:12].decode("latin-1") if answer.startswith(b"HTTP/1.1 ") else ""
        self.answers[status] += 1
        if status.startswith("5") and not _has_reason(answer):
            self.wrong.append(f"{sent[:300]!r} got {answer[:600]!r}")

    def __str__(self) -> str:
        told = ", ".join(f"{count} x {status or 'none'}" for status, count in self.answers.items())
        return told or "none"


def _has_reason(answer: bytes) -> bool:
    """Whether an error tells a reason by which a caller can know it; a fault of ours is none."""
    return bool(_REASON.search(answer)) and not _FAULT.search(answer)


def request(path: str, body: bytes, more: str = "") -> bytes:
    """A whole request, after whose answer the connection ends."""
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{more}"
    kind = "" if "content-type" in more else "content-type: application/json\r\n"
    return f"{head}{kind}content-length: {len(body)}\r\n\r\n".encode() + body


async def random_bytes(host: str, port: int, count: int, seed: int) -> Outcome:
    """Sends good requests of every route with bytes in them that are others, and mere bytes.

    What is cut off ends with the connection's end; of the rest an answer is awaited.
    """
    chance, outcome = random.Random(seed), Outcome()
    for number in range(count):
        path, body = BODIES[number % len(BODIES)]
        sent = bytearray(request(path, json.dumps(body).encode()))
        if chance.random() < 0.1:
            sent = bytearray(chance.randbytes(chance.randrange(1, 4000)))
        for _ in range(chance.choice((0, 1, 3, 20))):
            sent[chance.randrange(len(sent))] = chance.randrange(256)
        cut = chance.random() < 0.3
        if cut:
            del sent[chance.randrange(1, len(sent)) :]
        outcome.take(bytes(sent), await _answer(host, port, bytes(sent), cut=cut))
    return outcome


async def large_bodies(host: str, port: int) -> Outcome:
    """Sends 100 MB to every route, all at once: of a known length, and in chunks."""
    outcome = Outcome()
    sizes = [f"content-length: {LARGE}\r\n", "transfer-encoding: chunked\r\n"]
    sent = [(path, size) for path, _ in BODIES for size in sizes]
    for asked, answer in zip(
        sent, await asyncio.gather(*(_send_large(host, port, *one) for one in sent)), strict=True
    ):
        outcome.take(repr(asked).encode(), answer)
    return outcome


async def _send_large(host: str, port: int, path: str, size: str) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
    kind = "content-type: application/json\r\n"
    part = _PART if "length" in size else f"{len(_PART):x}\r\n".encode() + _PART + b"\r\n"
    async with _connected(host, port) as (reader, writer):
        writer.write(f"{head}{kind}{size}\r\n".encode())
        writing = asyncio.create_task(_write_all(writer, part, LARGE // len(_PART)))
        answer = await _read(reader)
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        return answer


async def _write_all(writer: asyncio.StreamWriter, part: bytes, count: int) -> None:
    for _ in range(count):
        writer.write(part)
        await writer.drain()


async def slow_callers(host: str, port: int, count: int) -> Outcome:
    """Holds connections that send a byte a second and no whole request; others are served.

    Raises:
        TimeoutError: Another caller was not answered meanwhile, or they are not turned away.
    """
    outcome = Outcome()
    dawdling = [
        asyncio.create_task(_dawdle(host, port, number, outcome)) for number in range(count)
    ]
    good = request("/v1/chat/completions", json.dumps(CHAT).encode())
    while not all(one.done() for one in dawdling):
        answer = await asyncio.wait_for(_answer(host, port, good), 10)
        if b" 200 " not in answer[:20]:
            outcome.wrong.append(f"beside slow callers, a good request got {answer[:300]!r}")
        await asyncio.sleep(1)
    await asyncio.gather(*dawdling)
    return outcome


async def _dawdle(host: str, port: int, number: int, outcome: Outcome) -> None:
    """A byte a second: of a head, or of a body that was said to be larger."""
    path, body = BODIES[number % len(BODIES)]
    whole = request(path, json.dumps(body).encode() + b" " * 1000)
    begun = whole.index(b"\r\n\r\n") + 4 if number % 2 else 5
    async with _connected(host, port) as (reader, writer):
        writer.write(whole[:begun])
        reading = asyncio.create_task(_read(reader))
        for place in range(begun, len(whole)):
            writer.write(whole[place : place + 1])
            if (await asyncio.wait([reading], timeout=1))[0]:
                break
        outcome.take(whole[:begun], await reading)


async def _answer(host: str, port: int, sent: bytes, *, cut: bool = False) -> bytes:
    """The answer to some bytes. `cut`: nothing follows them."""
    async with _connected(host, port) as (reader, writer):
        writer.write(sent)
        if cut:
            writer.write_eof()
        return await _read(reader, SECONDS if cut else ANSWER_SECONDS)


async def _read(reader: asyncio.StreamReader, seconds: float = SECONDS) -> bytes:
    parts = []
    try:
        async with asyncio.timeout(seconds):
            while part := await reader.read(1 << 16):
                parts.append(part)
    except (ConnectionError, TimeoutError):  # what came before is here
        pass
    return b"".join(parts)


@asynccontextmanager
async def _connected(
    host: str, port: int
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
