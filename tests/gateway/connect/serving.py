"""The services over HTTP, as a real server in this process, and clients of each protocol."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import uvicorn
from connectrpc.client import ConnectClient
from connectrpc.codec import Codec
from connectrpc.compat import google_protobuf_binary_codec, google_protobuf_json_codec
from connectrpc.protocol import ProtocolType
from starlette.applications import Starlette

from sllm.gateway.connect.app import Connect
from sllm.gateway.connect.services import Method, methods
from tests.support import assert_eventually

METHODS: dict[str, Method] = {method.path.rpartition(".")[2]: method for method in methods()}
"""By service and name, without the package."""
PROTOCOLS: dict[str, tuple[ProtocolType, Codec]] = {
    "connect": (ProtocolType.CONNECT, google_protobuf_binary_codec()),
    "connect+json": (ProtocolType.CONNECT, google_protobuf_json_codec()),
    "grpc-web": (ProtocolType.GRPC_WEB, google_protobuf_binary_codec()),
    "grpc-web+json": (ProtocolType.GRPC_WEB, google_protobuf_json_codec()),
}


@dataclass(frozen=True)
class Door:
    """Where the services are served."""

    url: str

    def client(self, protocol: str, **options: Any) -> ConnectClient:
        """A client of one protocol."""
        kind, codec = PROTOCOLS[protocol]
        return ConnectClient(self.url, protocol=kind, codec=codec, **options)

    def path(self, method: str) -> str:
        """The URL of `Service/Method`."""
        return f"{self.url}{METHODS[method].path}"

    async def ask(self, method: str, body: Any, **headers: str) -> tuple[int, Any]:
        """The status and the answer of a call in plain JSON."""
        async with aiohttp.ClientSession() as session:
            reply = await session.post(self.path(method), json=body, headers=headers)
            return reply.status, await reply.json(content_type=None)

    async def lines(self, method: str, body: Any, **headers: str) -> list[Any]:
        """What a stream in plain JSON consists of."""
        async with aiohttp.ClientSession() as session:
            reply = await session.post(self.path(method), json=body, headers=headers)
            assert reply.content_type == "application/x-ndjson", await reply.text()
            return [json.loads(line) async for line in reply.content]


@asynccontextmanager
async def served(app: Any) -> AsyncIterator[str]:
    """Serves an application on a free port, and gives its URL."""
    config = uvicorn.Config(app, port=0, log_level="warning", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve(), name="uvicorn")
    try:
        await assert_eventually(lambda: server.started or task.done())
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        await task


@asynccontextmanager
async def door_of(control_address: str) -> AsyncIterator[Door]:
    """The services of a control plane over HTTP."""
    connect = Connect(control_address)
    try:
        async with served(Starlette(routes=connect.routes())) as url:
            yield Door(url)
    finally:
        await connect.close()
