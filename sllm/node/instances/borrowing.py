"""Layers of one start that other nodes compute until their weights are here."""

import asyncio
from collections.abc import Sequence

import grpc
import structlog
from serverlessllm.v1 import peer_service_pb2 as pb
from serverlessllm.v1 import worker_service_pb2 as worker_pb
from serverlessllm.v1.peer_service_pb2_grpc import PeerServiceStub

from sllm import errors, rpc, sending
from sllm.checkpoint.format.manifest import Manifest
from sllm.node.instances.layer_streams import relay, until_one_ends
from sllm.node.instances.spec import InstanceSpec
from sllm.node.instances.worker_client import Worker
from sllm.node.instances.worker_messages import engine_config, layer_range
from sllm.node.peers.types import Peer
from sllm.node.store.first_uses import FirstUses
from sllm.node.tiers import layers
from sllm.node.tiers.first_use import ChunkOrder

Call = grpc.aio.StreamStreamCall[pb.RunLayersRequest, pb.RunLayersResponse]

log = structlog.get_logger()


class Borrowing:
    """What a start asks of lenders. Belongs to the event loop.

    Whatever becomes of them, the start has its own weights in the end: no error leaves this class.
    """

    def __init__(self, spec: InstanceSpec, first_uses: FirstUses, dial: rpc.Dial) -> None:
        """Asks for nothing yet."""
        self._spec = spec
        self._first_uses = first_uses
        self._dial = dial
        self._worker: asyncio.Future[Worker] = asyncio.get_running_loop().create_future()
        self._lent: tuple[tuple[Peer, range], ...] = ()
        self._calls: list[asyncio.Task[None]] = []

    @property
    def ranges(self) -> Sequence[range]:
        """Layers that lenders compute, once it has been planned."""
        return [found for _, found in self._lent]

    def order(self, manifest: Manifest, order: ChunkOrder) -> ChunkOrder:
        """Plans; gives the order of chunks in which lenders' layers come last.

        Nothing is lent of a model that needs all weights at once: it would wait all the same.
        """
        if len(order.at_once) == len(order.chunks):
            return order
        lenders = self._spec.lenders
        found = layers.ranges(layers.layer_bytes(manifest), [one.share for one in lenders])
        pairs = zip((one.peer for one in lenders), found, strict=True)
        self._lent = tuple((peer, theirs) for peer, theirs in pairs if theirs)
        return layers.first(manifest, order, self._is_own)

    def begin(self, manifest: Manifest) -> None:
        """Asks the lenders, who begin to read their layers."""
        for peer, theirs in self._lent:
            work = self._borrow(peer, theirs, manifest.digest)
            self._calls.append(asyncio.create_task(work, name=f"layers of {peer.node_id}"))

    def serve(self, worker: Worker) -> None:
        """Has a worker's passes go to the lenders that are ready, as soon as they are."""
        self._worker.set_result(worker)

    async def close(self) -> None:
        """Ends all calls, and with them what lenders have begun."""
        for call in self._calls:
            call.cancel()
        for outcome in await asyncio.gather(*self._calls, return_exceptions=True):
            if isinstance(outcome, Exception):
                log.error("instance.borrowing_failed", exc_info=outcome)

    def _is_own(self, layer: int | None) -> bool:
        return layer is None or not any(layer in theirs for theirs in self.ranges)

    async def _borrow(self, peer: Peer, theirs: range, digest: str) -> None:
        about = {"instance": self._spec.instance_id, "node": peer.node_id}
        layers_in_words = f"{theirs.start} to {theirs.stop - 1}"
        try:
            async with self._dial(peer.address) as channel:
                call = PeerServiceStub(channel).RunLayers()
                await self._open(call, theirs, digest)
                log.info("instance.layers_lent", layers=layers_in_words, **about)
                await self._pass_on(call, await asyncio.shield(self._worker), theirs)
        except (errors.SllmError, grpc.aio.UsageError) as error:
            log.info("instance.layers_not_lent", problem=str(error), **about)

    async def _open(self, call: Call, theirs: range, digest: str) -> None:
        wanted = _wanted(self._spec, theirs, digest)
        if use := self._first_uses.of(digest):
            wanted.first_use.tensors.extend(use.tensors)
            wanted.first_use.at_once = use.at_once
        await sending.write(call, pb.RunLayersRequest(wanted=wanted))
        with rpc.typed_errors():
            if await call.read() is grpc.aio.EOF:
                raise errors.NodeLost("the lender has left without a word")

    async def _pass_on(self, call: Call, worker: Worker, theirs: range) -> None:
        own = worker.borrow_layers()
        try:
            await sending.write(own, worker_pb.BorrowLayersRequest(ready=layer_range(theirs)))
            await until_one_ends(
                relay(own, call, lambda one: pb.RunLayersRequest(step=one.step)),
                relay(call, own, lambda one: worker_pb.BorrowLayersRequest(answer=one.answer)),
            )
        finally:
            own.cancel()
            call.cancel()


def _wanted(spec: InstanceSpec, theirs: range, digest: str) -> pb.LayersWanted:
    engine = engine_config(spec.engine)
    engine.pack = spec.engine.pack
    return pb.LayersWanted(
        deployment=spec.deployment,
        source=spec.source,
        identity=spec.identity,
        engine=engine,
        digest=digest,
        layers=layer_range(theirs),
        kv_bytes=spec.kv_bytes,
    )
