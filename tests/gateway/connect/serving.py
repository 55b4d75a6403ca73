"""The services over HTTP, as a real server in this process, and clients of each protocol."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
from connectrpc.client import ConnectClient
from connectrpc.codec import Codec
from connectrpc.compat import google_protobuf_binary_codec, google_protobuf_json_codec
from connectrpc.protocol import ProtocolType

from sllm.gateway.connect.services import Method, methods
from sllm.gateway.server import running
from sllm.gateway.settings import GatewaySettings

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
async def door_of(*controls: str, **settings: Any) -> AsyncIterator[Door]:
    """A gateway of control planes, in this process."""
    given = {"port": 0, "stop_seconds": 0.2, **settings}
    async with running(GatewaySettings(controls, **given)) as address:
        yield Door(f"http://{address}")
