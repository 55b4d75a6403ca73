"""A server of what other nodes have from one, within the process of a test."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from serverlessllm.v1 import peer_service_pb2 as pb
from serverlessllm.v1.peer_service_pb2_grpc import add_PeerServiceServicer_to_server

from sllm import rpc
from sllm.node.api.peer_service import PeerServicer
from sllm.node.peers.types import Peer


@asynccontextmanager
async def serving(servicer: PeerServicer) -> AsyncIterator[Peer]:
    """A node that gives what this servicer has."""
    server = rpc.Server()
    add_PeerServiceServicer_to_server(servicer, server.grpc)
    service = pb.DESCRIPTOR.services_by_name["PeerService"]
    port = await server.start("127.0.0.1:0", [service], insecure=True)
    try:
        yield Peer("giver", f"127.0.0.1:{port}")
    finally:
        await server.stop(0.0)


class Stalling(PeerServicer):
    """Is asked, and does not answer."""

    def __init__(self) -> None:
        self.asked = 0

    async def FollowChunks(
        self, request: pb.FollowChunksRequest, context: Any
    ) -> AsyncIterator[pb.FollowChunksResponse]:
        self.asked += 1
        await asyncio.Event().wait()
        yield pb.FollowChunksResponse()
