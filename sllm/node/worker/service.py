"""The worker's service: parse, call, translate."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from opentelemetry import trace
from serverlessllm.v1 import worker_service_pb2 as pb
from serverlessllm.v1.worker_service_pb2_grpc import WorkerServiceServicer

from sllm.durations import to_duration
from sllm.errors import InvalidArgument, SllmError
from sllm.node.worker import wire
from sllm.node.worker.generation import Failed, Output
from sllm.node.worker.host import ModelHost
from sllm.node.worker.model.held_weights import PooledWeights

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
            return wire.prepare_response(await self._host.prepare(directory, options))

    async def Attach(self, request: pb.AttachRequest, context: Any) -> pb.AttachResponse:
        """Maps the weights, builds the module over them and starts the engine."""
        with tracer.start_as_current_span("sllm.attach"):
            weights = wire.weights(request)
            return wire.attach_response(await self._host.attach(weights, request.kv_bytes))

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
            await self._host.adapters.load(*name, directory, weights)
            return pb.LoadAdapterResponse(duration=to_duration(time.monotonic() - began))

    async def UnloadAdapter(
        self, request: pb.UnloadAdapterRequest, context: Any
    ) -> pb.UnloadAdapterResponse:
        """Lets go of an adapter's memory."""
        await self._host.adapters.unload(request.adapter_id)
        return pb.UnloadAdapterResponse()

    async def MakeReady(self, request: pb.MakeReadyRequest, context: Any) -> pb.MakeReadyResponse:
        """Writes weights as the engine's kernels read them."""
        with tracer.start_as_current_span("sllm.make_ready"):
            weights = wire.weights(request.weights)
            if not isinstance(weights, PooledWeights):
                raise InvalidArgument("weights on a device are not made ready")
            seconds = await self._host.make_ready(weights, Path(request.directory))
            return pb.MakeReadyResponse(duration=to_duration(seconds))

    async def Run(
        self, requests: AsyncIterator[pb.RunRequest], context: Any
    ) -> AsyncIterator[pb.RunResponse]:
        """Takes requests and gives what comes of them. When the call ends, so do they."""
        host, outbox = self._host, self._host.outbox
        if self._followed:
            raise InvalidArgument("another Run is under way; a worker has one")
        self._followed = True
        commands = asyncio.create_task(self._take_commands(requests), name="commands")
        try:
            while (outputs := await outbox.take()) is not None:
                yield wire.run_response(outputs, outbox.counters)
        finally:
            commands.cancel()
            host.cancel_all()
            self._followed = False

    async def GetStatus(self, request: pb.GetStatusRequest, context: Any) -> pb.GetStatusResponse:
        """Counters, and where the parameters are in memory."""
        host = self._host
        return wire.status_response(host.counters, host.parameters(), host.mapped)

    async def _take_commands(self, requests: AsyncIterator[pb.RunRequest]) -> None:
        try:
            async for request in requests:
                if request.WhichOneof("command") == "submit":
                    self._submit(request)
                else:
                    self._host.cancel(request.cancel_request_id)
        except Exception as error:
            self._host.fail(error)  # nobody is left to take commands

    def _submit(self, request: pb.RunRequest) -> None:
        try:
            self._host.generations.submit(wire.generation_request(request))
        except SllmError as error:
            refusal = Output(request.submit.request_id, Failed(error))
            self._host.outbox.put((refusal,), self._host.counters)
