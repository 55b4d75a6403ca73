"""The worker's service: parse, call, translate."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import structlog
from opentelemetry import trace
from serverlessllm.v1 import worker_service_pb2 as pb
from serverlessllm.v1.worker_service_pb2_grpc import WorkerServiceServicer

from sllm.durations import to_duration
from sllm.errors import InvalidArgument, SllmError
from sllm.node.worker import layer_wire, page_wire, wire
from sllm.node.worker.generation import Failed, Output
from sllm.node.worker.host import ModelHost
from sllm.node.worker.layers.borrowed import BorrowedLayers
from sllm.node.worker.layers.calls import Borrowing, Lending
from sllm.node.worker.model.held_weights import PooledWeights
from sllm.node.worker.page_keeping import PageKeeping

log = structlog.get_logger()
tracer = trace.get_tracer("sllm")


class WorkerServicer(WorkerServiceServicer):
    """See worker_service.proto."""

    def __init__(self, host: ModelHost) -> None:
        self._host = host
        self._followed = False

    async def Prepare(self, request: pb.PrepareRequest, context: Any) -> pb.PrepareResponse:
        """Loads the tokenizer and the model's classes."""
        with tracer.start_as_current_span("sllm.prepare"):
            directory, options = Path(request.checkpoint_dir), wire.engine_options(request.engine)
            prepared = await self._host.prepare(directory, options)
            return wire.prepare_response(prepared, self._host.rank_pids)

    async def Attach(self, request: pb.AttachRequest, context: Any) -> pb.AttachResponse:
        """Maps the weights, builds the module over them and starts the engine."""
        with tracer.start_as_current_span("sllm.attach"):
            weights, tell = wire.weights(request), request.tell_first_use
            sizes = request.kv_bytes, request.more_kv_bytes
            attached = await self._host.attach(weights, *sizes, tell_first_use=tell)
            return wire.attach_response(attached, resizes=self._host.running.resizes_cache)

    async def LoadAdapter(
        self, request: pb.LoadAdapterRequest, context: Any
    ) -> pb.LoadAdapterResponse:
        """Has requests be able to name an adapter."""
        with tracer.start_as_current_span("sllm.load_adapter"):
            weights, began = wire.weights(request.weights), time.monotonic()
            if not isinstance(weights, PooledWeights):
                raise InvalidArgument("adapters are loaded from the pool")
            directory = Path(request.checkpoint_dir)
            name = request.adapter_id, request.identity
            await self._host.running.adapters.load(*name, directory, weights)
            return pb.LoadAdapterResponse(duration=to_duration(time.monotonic() - began))

    async def UnloadAdapter(
        self, request: pb.UnloadAdapterRequest, context: Any
    ) -> pb.UnloadAdapterResponse:
        """Lets go of an adapter's memory."""
        await self._host.running.adapters.unload(request.adapter_id)
        return pb.UnloadAdapterResponse()

    async def MakeReady(self, request: pb.MakeReadyRequest, context: Any) -> pb.MakeReadyResponse:
        """Writes weights as the engine's kernels read them."""
        with tracer.start_as_current_span("sllm.make_ready"):
            weights = wire.weights(request.weights)
            if not isinstance(weights, PooledWeights):
                raise InvalidArgument("weights on a device are not made ready")
            form = wire.weight_form(request.form)
            seconds = await self._host.make_ready(weights, Path(request.directory), form)
            return pb.MakeReadyResponse(duration=to_duration(seconds))

    async def Run(
        self, requests: AsyncIterator[pb.RunRequest], context: Any
    ) -> AsyncIterator[pb.RunResponse]:
        """Takes requests and gives what comes of them. When the call ends, so do they."""
        host, running = self._host, self._host.running
        outbox = running.outbox
        if self._followed:
            raise InvalidArgument("another Run is under way; a worker has one")
        self._followed = True
        commands = asyncio.create_task(self._take_commands(requests), name="commands")
        try:
            while (outputs := await outbox.take()) is not None:
                first_use, corrupt = host.weights_use.take_first_use(), host.weights_use.corrupt
                yield wire.run_response(outputs, outbox.counters, first_use, corrupt)
        finally:
            commands.cancel()
            running.cancel_all()
            self._followed = False

    async def KeepPages(
        self, requests: AsyncIterator[pb.KeepPagesRequest], context: Any
    ) -> AsyncIterator[pb.KeepPagesResponse]:
        """Has the agent keep pages of the cache, and bring them back, until the call ends."""
        begin = await anext(requests)
        # Whoever computes layers for it would not have the pages that come.
        await self._host.weights_use.until_own()
        keeping = self._host.keep_pages(begin.begin.scope, int8=begin.begin.int8)
        if keeping is None:
            return
        answers = asyncio.create_task(_take_answers(keeping, requests), name="kept pages")
        try:
            while (message := await keeping.next_message()) is not None:
                yield page_wire.message(message)
        finally:
            answers.cancel()
            self._host.stop_keeping(keeping)

    async def BorrowLayers(
        self, requests: AsyncIterator[pb.BorrowLayersRequest], context: Any
    ) -> AsyncIterator[pb.BorrowLayersResponse]:
        """Has layers computed elsewhere, until their weights are here or the call ends."""
        begin = await anext(requests, pb.BorrowLayersRequest())
        layers = self._host.weights_use.borrowed(layer_wire.layers(begin.ready))
        with closing(Borrowing(layers)) as borrowing:
            answers = asyncio.create_task(_take_layers(layers, requests), name="borrowed layers")
            try:
                while (one := await borrowing.next_pass()) is not None:
                    yield pb.BorrowLayersResponse(step=layer_wire.pass_message(one))
            finally:
                answers.cancel()

    async def ComputeLayers(
        self, requests: AsyncIterator[pb.ComputeLayersRequest], context: Any
    ) -> AsyncIterator[pb.ComputeLayersResponse]:
        """Computes layers for another node's worker."""
        begin = await anext(requests, pb.ComputeLayersRequest())
        running = self._host.running
        lent = running.lend(layer_wire.layers(begin.layers))
        with closing(Lending(lent)) as lending:
            async for request in requests:
                one = layer_wire.one_pass(request.step, lent.dtype)
                async for answer in lending.answers(one):
                    yield pb.ComputeLayersResponse(answer=layer_wire.answer_message(answer))

    async def ResizeCache(
        self, request: pb.ResizeCacheRequest, context: Any
    ) -> pb.ResizeCacheResponse:
        """Says what the cache may take from now on."""
        resize = self._host.running.resize_cache
        use = await asyncio.to_thread(resize, request.share_bytes)
        return wire.resize_response(use)

    async def GetStatus(self, request: pb.GetStatusRequest, context: Any) -> pb.GetStatusResponse:
        """Counters, and where the parameters are in memory."""
        host = self._host
        experts = host.weights_use.experts
        counts = experts.counts if experts else None
        return wire.status_response(host.counters, host.parameters(), host.mapped, counts)

    async def _take_commands(self, requests: AsyncIterator[pb.RunRequest]) -> None:
        try:
            async for request in requests:
                match request.WhichOneof("command"):
                    case "submit":
                        self._submit(request)
                    case "arrived":
                        self._host.weights_use.arrived(request.arrived.chunks)
                    case _:
                        self._host.running.cancel(request.cancel_request_id)
        except Exception as error:
            self._host.fail(error)  # nobody is left to take commands

    def _submit(self, request: pb.RunRequest) -> None:
        try:
            self._host.running.generations.submit(wire.generation_request(request))
        except SllmError as error:
            refusal = Output(request.submit.request_id, Failed(error))
            self._host.running.outbox.put((refusal,), self._host.counters)


async def _take_answers(keeping: PageKeeping, requests: AsyncIterator[pb.KeepPagesRequest]) -> None:
    async for request in requests:
        page_wire.take_answer(keeping, request)


async def _take_layers(
    layers: BorrowedLayers, requests: AsyncIterator[pb.BorrowLayersRequest]
) -> None:
    try:
        async for request in requests:
            layers.take(layer_wire.answer(request.answer, layers.dtype))
    except InvalidArgument as error:
        log.warning("layers.answer_refused", problem=error.message)
    finally:
        layers.lost()
