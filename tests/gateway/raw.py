"""HTTP as bytes, for what no client would do."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Connection]:
    """A connection that ends with the block."""
    at = urlsplit(url)
    reader, writer = await asyncio.open_connection(at.hostname, at.port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


def post(path: str, body: Any, headers: str = "") -> bytes:
    """A request with a JSON body."""
    encoded = body if isinstance(body, bytes) else json.dumps(body).encode()
    to = f"POST {path} HTTP/1.1\r\nhost: localhost\r\n"
    head = f"{to}content-length: {len(encoded)}\r\n{headers}\r\n"
    return head.encode() + encoded


async def head_of(reader: asyncio.StreamReader) -> str:
    """The head of an answer."""
    return (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)).decode()
