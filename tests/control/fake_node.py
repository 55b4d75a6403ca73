"""A node agent that does no work: a real gRPC server whose behaviour tests script."""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

import grpc
from google.protobuf.message import Message
from serverlessllm.v1 import inference_service_pb2 as inference_pb
from serverlessllm.v1 import migration_service_pb2 as migration_pb
from serverlessllm.v1 import node_service_pb2 as node_pb
from serverlessllm.v1 import types_pb2 as pb
from serverlessllm.v1.embedding_service_pb2_grpc import add_EmbeddingServiceServicer_to_server
from serverlessllm.v1.inference_service_pb2_grpc import (
    InferenceServiceServicer,
    add_InferenceServiceServicer_to_server,
)
from serverlessllm.v1.model_service_pb2_grpc import add_ModelServiceServicer_to_server
from serverlessllm.v1.node_service_pb2_grpc import (
    NodeServiceServicer,
    add_NodeServiceServicer_to_server,
)

from sllm import errors, rpc
from sllm.durations import to_duration
from sllm.node.generations.multiplexer import Multiplexer
from tests.control.fake_encoders import FakeEncoders
from tests.control.fake_models import FakeModels
from tests.control.reporting_node import ReportingNode
from tests.control.script import MIB
from tests.support import assert_eventually

__all__ = ["MIB", "FakeNode"]


class FakeNode(
    FakeModels, FakeEncoders, ReportingNode, NodeServiceServicer, InferenceServiceServicer
):
    """Serves its services as far as tests need it, and reports to a control plane."""

    def __init__(self, node_id: str, *, dram_mib: int = 64, kv_mib: int = 64) -> None:
        super().__init__(node_id, dram_mib=dram_mib, kv_mib=kv_mib)
        self.calls: list[Message] = []
        self.cancelled: list[str] = []
        """Requests whose call ended before they had."""
        self.traceparents: list[str] = []
        """The trace context of each Generate call."""
        self.running: set[str] = set()
        """Requests under way."""
        self.moving: dict[str, inference_pb.Moved] = {}
        """Requests that leave at `amid_tokens`, and where to."""
        self.refusing = ""
        """The engine that runs no model."""
        self.adapters: dict[str, str] = {}
        """Identities of sources that are adapters."""
        self.unfit: dict[str, str] = {}
        """Of adapters, by source, engines on which they do not fit."""
        self.most_kv_bytes = 0
        """The most that the instances have held at once."""

    # --- life ---------------------------------------------------------------------------------

    async def start(
        self,
        control_address: str,
        listen: str = "127.0.0.1:0",
        within: Sequence[grpc.aio.ServerInterceptor] = (),
    ) -> None:
        self._server = rpc.Server(within=within)
        add_NodeServiceServicer_to_server(self, self._server.grpc)
        add_InferenceServiceServicer_to_server(self, self._server.grpc)
        add_ModelServiceServicer_to_server(self, self._server.grpc)
        add_EmbeddingServiceServicer_to_server(self, self._server.grpc)
        port = await self._server.start(listen, [])
        self.address = f"127.0.0.1:{port}"
        self.begin_reports(control_address)

    async def die(self) -> None:
        """Ends at once, as if killed."""
        await self.leave()
        await self._server.stop(0)

    # --- NodeService --------------------------------------------------------------------------

    async def InspectSource(
        self, request: node_pb.InspectSourceRequest, context: Any
    ) -> node_pb.InspectSourceResponse:
        self.calls.append(request)
        if self.script.inspect_error:
            raise self.script.inspect_error
        if request.HasField("base"):
            return node_pb.InspectSourceResponse(
                model=self._adapter(request), engine=request.engine
            )
        worth_trying = [name for name in self.engines or ("transformers",) if name != self.refusing]
        engine = worth_trying[0] if request.engine == "auto" else request.engine
        if engine == self.refusing:
            raise errors.UnsupportedModel(f"{engine} does not know it")
        model = pb.ModelInfo()
        model.CopyFrom(self.script.model)
        if engine == "transformers" and model.HasField("private_bytes") and self.engines:
            model.private_bytes = model.private_bytes_per_request = 0  # it copies nothing
        return node_pb.InspectSourceResponse(model=model, engine=engine)

    async def Promote(
        self, request: node_pb.PromoteRequest, context: Any
    ) -> AsyncIterator[node_pb.PromoteResponse]:
        self.calls.append(request)
        if self.adapters.get(request.source) != request.identity:
            self._check_identity(request.identity)
        yield node_pb.PromoteResponse(loading=self._loading(pb.LOAD_PHASE_IMPORT))
        await self.script.before_promoted.passed()
        if self.script.promote_error:
            raise self.script.promote_error
        if self.script.disk_error and request.tier == pb.TIER_SSD:
            raise self.script.disk_error
        taken = pb.TIER_DRAM if self.script.disk_error else pb.TIER_SSD
        digest = self.add_copy(request.source, taken)
        if request.tier == pb.TIER_DRAM:
            self.add_copy(request.source, pb.TIER_DRAM)
        if request.hold_id:
            self.hold(request, digest)
        model = self._model(digest)
        if request.source in self.adapters:
            identity = self.adapters[request.source]
            model = pb.ModelInfo(size_bytes=100, digest=digest, identity=identity)
        yield node_pb.PromoteResponse(done=node_pb.PromoteDone(model=model))

    async def ReleaseHold(
        self, request: node_pb.ReleaseHoldRequest, context: Any
    ) -> node_pb.ReleaseHoldResponse:
        self.calls.append(request)
        await self.script.before_release.passed()
        self.drop_hold(request.hold_id)
        return node_pb.ReleaseHoldResponse()

    async def Evict(self, request: node_pb.EvictRequest, context: Any) -> node_pb.EvictResponse:
        self.calls.append(request)
        if self.copies[request.digest, request.tier].leased:
            raise errors.CheckpointLeased("in use")
        self.drop_copy(request.digest, request.tier)
        return node_pb.EvictResponse()

    async def StartInstance(
        self, request: node_pb.StartInstanceRequest, context: Any
    ) -> AsyncIterator[node_pb.StartInstanceResponse]:
        self.calls.append(request)
        self._check_identity(request.identity)
        instance = self.instances.get(request.instance_id)
        if instance is None:
            instance = self._admit(request)
        yield node_pb.StartInstanceResponse(loading=self._loading(pb.LOAD_PHASE_READ))
        await self.script.before_ready.passed()
        yield node_pb.StartInstanceResponse(loading=self._loading(pb.LOAD_PHASE_INIT))
        if self.script.start_errors:
            self.set_state(instance, pb.INSTANCE_STATE_GONE)
            raise self.script.start_errors.pop(0)
        if instance.state == pb.INSTANCE_STATE_GONE:
            raise errors.Cancelled("the instance was stopped")
        instance.digest = self.add_copy(request.source, pb.TIER_DRAM)
        instance.identity = self.script.model.identity
        self.set_state(instance, pb.INSTANCE_STATE_READY)
        phase = pb.Phase(kind=pb.PHASE_KIND_READ_SSD, size_bytes=10)
        phase.duration.FromMilliseconds(1)
        ready = node_pb.InstanceReady(
            instance=instance,
            phases=[phase],
            from_tier=pb.TIER_SSD,
            model=self._model(instance.digest),
            weights_arriving=self.script.weights_arriving,
        )
        yield node_pb.StartInstanceResponse(ready=ready)

    def _adapter(self, request: node_pb.InspectSourceRequest) -> pb.ModelInfo:
        if self.unfit.get(request.source) == request.engine:
            raise errors.UnsupportedAdapter(f"{request.engine} has no layers w1: it has 7 others")
        adapter = pb.AdapterInfo(
            rank=4, target_modules=["q_proj"], base_identity=request.base.identity
        )
        identity = self.adapters[request.source]
        return pb.ModelInfo(size_bytes=100, identity=identity, adapter=adapter)

    def _check_identity(self, identity: str) -> None:
        if identity != self.script.model.identity:
            raise errors.SourceChanged(f"{self.script.model.identity} is there, not {identity}")

    def _admit(self, request: node_pb.StartInstanceRequest) -> pb.Instance:
        used = sum(one.kv_bytes for one in self.instances.values()) + request.kv_bytes
        if used > self._kv:
            raise errors.NoCapacity(f"{used} bytes of KV cache, {self._kv} there are")
        self.most_kv_bytes = max(self.most_kv_bytes, used)
        instance = pb.Instance(
            instance_id=request.instance_id,
            deployment=request.deployment,
            node_id=self.node_id,
            kv_bytes=request.kv_bytes,
            worker_pid=1,
            engine=request.engine.engine,
            private_bytes=request.private_bytes if request.HasField("private_bytes") else None,
            config=request.engine,
        )
        self.instances[request.instance_id] = instance
        self.set_state(instance, pb.INSTANCE_STATE_STARTING)
        return instance

    async def StopInstance(
        self, request: node_pb.StopInstanceRequest, context: Any
    ) -> node_pb.StopInstanceResponse:
        self.calls.append(request)
        await self.script.before_stop.passed()
        if self.script.stop_errors:
            raise self.script.stop_errors.pop(0)
        if instance := self.instances.get(request.instance_id):
            if request.grace.ToSeconds():
                self.set_state(instance, pb.INSTANCE_STATE_DRAINING)
                await assert_eventually(lambda: not instance.running_requests)
            self.set_state(instance, pb.INSTANCE_STATE_GONE)
        return node_pb.StopInstanceResponse()

    async def StartMigration(
        self, request: node_pb.StartMigrationRequest, context: Any
    ) -> AsyncIterator[node_pb.StartMigrationResponse]:
        self.calls.append(request)
        await self.script.before_migration.passed()
        if self.script.migration_errors:
            raise self.script.migration_errors.pop(0)
        if self.script.migration_says_nothing:
            return
        for request_id in request.request_ids or list(self.running):
            if self.script.stays:
                failure = migration_pb.MigrationFailure(code=14, reason="UNREACHABLE", message="no")
                yield node_pb.StartMigrationResponse(request_id=request_id, failure=failure)
                continue
            progress = node_pb.MigrationProgress(round=1, computed_tokens=5)
            yield node_pb.StartMigrationResponse(request_id=request_id, progress=progress)
            self.moving[request_id] = inference_pb.Moved(
                node_id=request.to_node_id,
                instance_id=request.to_instance_id,
                reason=request.reason,
            )
            self.script.amid_tokens.open()
            done = node_pb.MigrationDone(rounds=1, tokens=10, gap_tokens=2)
            done.duration.FromMilliseconds(500)
            yield node_pb.StartMigrationResponse(request_id=request_id, done=done)

    def _loading(self, phase: pb.LoadPhase.ValueType) -> pb.Loading:
        total = self.script.model.size_bytes
        return pb.Loading(phase=phase, from_tier=pb.TIER_SSD, loaded_bytes=1, total_bytes=total)

    def _model(self, digest: str) -> pb.ModelInfo:
        model = pb.ModelInfo()
        model.CopyFrom(self.script.model)
        model.digest = digest
        return model

    # --- requests -----------------------------------------------------------------------------

    async def Multiplex(
        self, requests: AsyncIterator[node_pb.MultiplexRequest], context: Any
    ) -> AsyncIterator[node_pb.MultiplexResponse]:
        async for step in Multiplexer(self._generate).follow(requests):
            yield step

    async def Generate(
        self, request: inference_pb.GenerateRequest, context: Any
    ) -> AsyncIterator[inference_pb.GenerateResponse]:
        async for event in self._generate(request):
            yield event

    async def _generate(
        self, request: inference_pb.GenerateRequest
    ) -> AsyncGenerator[inference_pb.GenerateResponse]:
        self.calls.append(request)
        self.traceparents.append(rpc.trace_headers().get("traceparent", ""))
        instance = self.instances.get(request.instance_id)
        if instance is None or instance.state != pb.INSTANCE_STATE_READY:
            raise errors.InstanceNotFound(f"no ready instance {request.instance_id}")
        if request.continuation.identity not in ("", instance.identity):
            raise errors.SourceChanged(f"{instance.identity} is served, not what was begun")
        if request.HasField("adapter"):
            self._load(instance, request.adapter)
        instance.running_requests += 1
        self.running.add(request.request_id)
        finished = False
        try:
            async for response in self._events(request):
                finished = response.HasField("finished") or response.HasField("moved")
                yield response
        finally:
            instance.running_requests -= 1
            self.running.discard(request.request_id)
            if not finished:
                self.cancelled.append(request.request_id)

    def _load(self, instance: pb.Instance, adapter: inference_pb.AdapterSource) -> None:
        loaded = pb.LoadedAdapter(deployment=adapter.deployment, identity=adapter.identity)
        room = len(instance.adapters) < instance.config.max_adapters
        if loaded not in instance.adapters and room:  # else it would stand in line
            instance.adapters.append(loaded)
            self.set_state(instance, instance.state)

    async def _events(
        self, request: inference_pb.GenerateRequest
    ) -> AsyncIterator[inference_pb.GenerateResponse]:
        Response = inference_pb.GenerateResponse
        serving = self.instances[request.instance_id]
        yield Response(
            started=inference_pb.Started(
                instance_id=request.instance_id,
                node_id=self.node_id,
                prompt_tokens=2,
                request_id=request.request_id,
                prompt_token_ids=() if request.HasField("token_ids") else (7, 8),
                identity=serving.identity,
            )
        )
        if request.HasField("prompt_logprobs") and not request.continuation.token_ids:
            for index, token_id in enumerate((7, 8)):
                token = inference_pb.PromptLogprob(token_id=token_id)
                told = inference_pb.PromptLogprobs(first_index=index, tokens=[token])
                yield Response(prompt_logprobs=told)
        await self.script.before_tokens.passed()
        if self.script.generate_errors:
            raise self.script.generate_errors.pop(0)
        count = request.max_tokens or 3
        for index in range(len(request.continuation.token_ids), count):
            seconds = await self.script.token_time(serving.running_requests)
            took = to_duration(seconds) if seconds else None
            tokens = inference_pb.Tokens(
                first_index=index, token_ids=[index], text=f"{index} ", duration=took
            )
            yield Response(sequence=index, tokens=tokens)
            if index + 1 == self.script.tokens_before_gate:
                await self.script.amid_tokens.passed()
                if moved := self.moving.pop(request.request_id, None):
                    moved.tokens = index + 1 + self.script.tokens_unsent
                    yield Response(moved=moved)
                    return
                if self.script.amid_errors:
                    raise self.script.amid_errors.pop(0)
        await self.script.before_finish.passed()
        prefill = pb.Phase(kind=pb.PHASE_KIND_PREFILL)
        prefill.duration.FromMilliseconds(1)
        yield Response(
            finished=inference_pb.Finished(
                reason=pb.FINISH_REASON_LENGTH,
                usage=pb.Usage(prompt_tokens=2, completion_tokens=count),
                receipt=pb.Receipt(phases=[prefill, *self.script.phases]),
            )
        )

    async def Cancel(
        self, request: inference_pb.CancelRequest, context: Any
    ) -> inference_pb.CancelResponse:
        self.calls.append(request)
        return inference_pb.CancelResponse()

    # --- what tests ask -----------------------------------------------------------------------

    def names(self) -> list[str]:
        """The calls so far, by their requests' types."""
        return [type(call).__name__.removesuffix("Request") for call in self.calls]

    def served(self) -> list[str]:
        """Ids of the requests that came, in their order."""
        Request = inference_pb.GenerateRequest
        return [call.request_id for call in self.calls if isinstance(call, Request)]

    def started(self) -> list[str]:
        """Deployments of the starts that were asked for, in their order."""
        Request = node_pb.StartInstanceRequest
        return [call.deployment for call in self.calls if isinstance(call, Request)]

    def count(self, name: str) -> int:
        """How often a method was called."""
        return self.names().count(name)
