"""What other nodes have from this one: each method parses, asks the store and translates."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc
from serverlessllm.v1 import peer_service_pb2 as pb
from serverlessllm.v1 import worker_service_pb2 as worker_pb
from serverlessllm.v1.peer_service_pb2_grpc import PeerServiceServicer

from sllm import errors, rpc, sending
from sllm.node.api import layers_wire
from sllm.node.api.opening import opening
from sllm.node.instances.lending import Lending
from sllm.node.kept.giving import PageGiver
from sllm.node.peers import wire
from sllm.node.store.sharing import Sharing
from sllm.node.tiers.checkpoints import SourceRecord


class PeerServicer(PeerServiceServicer):
    """What other nodes have from this one; see peer_service.proto."""

    def __init__(self, sharing: Sharing, pages: PageGiver, lending: Lending | None = None) -> None:
        """`lending`: computes layers for others. None: nobody does here."""
        self._sharing = sharing
        self._pages = pages
        self._lending = lending

    async def FollowChunks(
        self, request: pb.FollowChunksRequest, context: Any
    ) -> AsyncIterator[pb.FollowChunksResponse]:
        """Says what is here, and what comes."""
        record, caller = self._record(request.origin), wire.caller(request)
        following = self._sharing.follow(record, caller, wants_manifest=request.wants_manifest)
        async with aclosing(following) as told:
            async for news in told:
                yield wire.news_message(news)

    async def Fetch(
        self, request: pb.FetchRequest, context: Any
    ) -> AsyncIterator[pb.FetchResponse]:
        """Gives a chunk, or a small file."""
        record = self._record(request.origin)
        if request.file:
            giving = self._sharing.file_pieces(record, request.file, request.offset)
        else:
            giving = self._sharing.pieces(record, request.chunk, request.offset)
        async with aclosing(giving) as pieces:
            async for piece in pieces:
                yield pb.FetchResponse(data=piece)

    def _record(self, origin: pb.CheckpointOrigin) -> SourceRecord:
        return (
            self._sharing.record_of(origin.digest) if origin.digest else wire.origin_record(origin)
        )

    async def FetchPages(
        self, request: pb.FetchPagesRequest, context: Any
    ) -> AsyncIterator[pb.FetchPagesResponse]:
        """Gives pages that are kept."""
        async with aclosing(self._pages.pieces(request.keys, request.page_bytes)) as pieces:
            async for piece in pieces:
                yield pb.FetchPagesResponse(digests=piece.digests, data=piece.data)

    async def RunLayers(
        self, requests: AsyncIterator[pb.RunLayersRequest], context: Any
    ) -> AsyncIterator[pb.RunLayersResponse]:
        """Computes layers for another node."""
        if self._lending is None:
            raise errors.NoCapacity("this node computes no layers for others")
        wanted = await wanted_layers(requests)
        async with self._lending.worker(layers_wire.layers_wish(wanted)) as worker:
            yield pb.RunLayersResponse(ready=pb.LayersReady())
            call = worker.compute_layers()
            await sending.write(call, worker_pb.ComputeLayersRequest(layers=wanted.layers))
            steps = asyncio.create_task(_send_steps(requests, call), name="passes of lent layers")
            try:
                with rpc.typed_errors():
                    while (found := await call.read()) is not grpc.aio.EOF:
                        yield pb.RunLayersResponse(answer=found.answer)
            finally:
                steps.cancel()
                call.cancel()


async def wanted_layers(requests: AsyncIterator[pb.RunLayersRequest]) -> pb.LayersWanted:
    """The first message of a call that wants layers.

    Raises:
        errors.InvalidArgument: It wants none, or there is no message.
        errors.DeadlineExceeded: Nothing has come.
    """
    first = await opening(requests)
    if first is None or not first.HasField("wanted"):
        raise errors.InvalidArgument("the first message says in `wanted` which layers")
    return first.wanted


async def _send_steps(requests: AsyncIterator[pb.RunLayersRequest], call: Any) -> None:
    async for request in requests:
        if not await sending.write(call, worker_pb.ComputeLayersRequest(step=request.step)):
            return
    await call.done_writing()
