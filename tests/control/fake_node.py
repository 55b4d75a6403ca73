"""A node agent that does no work: a real gRPC server whose behaviour tests script."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.message import Message
from serverlessllm.v1 import fleet_service_pb2 as fleet_pb
from serverlessllm.v1 import inference_service_pb2 as inference_pb
from serverlessllm.v1 import migration_service_pb2 as migration_pb
from serverlessllm.v1 import node_service_pb2 as node_pb
from serverlessllm.v1 import types_pb2 as pb
from serverlessllm.v1.fleet_service_pb2_grpc import FleetServiceStub
from serverlessllm.v1.inference_service_pb2_grpc import (
    InferenceServiceServicer,
    add_InferenceServiceServicer_to_server,
)
from serverlessllm.v1.node_service_pb2_grpc import (
    NodeServiceServicer,
    add_NodeServiceServicer_to_server,
)

from sllm import errors, rpc
from tests.support import assert_eventually

MIB = 1024 * 1024


Outbox = asyncio.Queue[fleet_pb.ReportRequest | None]
"""Reports to be sent; None ends the stream."""


class Gate:
    """Open, unless a test shuts it; whoever comes to a shut gate waits."""

    def __init__(self) -> None:
        self._open = asyncio.Event()
        self._open.set()
        self.waiting = 0

    def shut(self) -> None:
        self._open.clear()

    def open(self) -> None:
        self._open.set()

    async def passed(self) -> None:
        self.waiting += 1
        await self._open.wait()
        self.waiting -= 1


@dataclass
class Script:
    """What the node does; tests change it at any time."""

    model: pb.ModelInfo = field(
        default_factory=lambda: pb.ModelInfo(
            architecture="FakeForCausalLM",
            size_bytes=10 * MIB,
            context_tokens=1024,
            kv_bytes_per_token=1024,
        )
    )
    inspect_error: errors.SllmError | None = None
    promote_error: errors.SllmError | None = None
    start_errors: list[errors.SllmError] = field(default_factory=list)
    """One for each of the next starts."""
    generate_errors: list[errors.SllmError] = field(default_factory=list)
    """One for each of the next requests, raised at the token gate."""
    before_promoted: Gate = field(default_factory=Gate)
    before_ready: Gate = field(default_factory=Gate)
    before_tokens: Gate = field(default_factory=Gate)
    """After `started`, before the first token."""
    tokens_before_gate: int | None = None
    """After how many tokens of a generation `amid_tokens` comes."""
    amid_tokens: Gate = field(default_factory=Gate)
    amid_errors: list[errors.SllmError] = field(default_factory=list)
    """One for each of the next requests that pass it."""
    before_finish: Gate = field(default_factory=Gate)
    """After the tokens."""
    before_migration: Gate = field(default_factory=Gate)
    migration_errors: list[errors.SllmError] = field(default_factory=list)
    """One for each of the next migrations."""
    stays: bool = False
    """Whether every request that is to move stays."""
    tokens_unsent: int = 0
    """Tokens that have moved without having been given out."""
    before_stop: Gate = field(default_factory=Gate)


class FakeNode(NodeServiceServicer, InferenceServiceServicer):
    """Serves NodeService and InferenceService, and reports to a control plane."""

    def __init__(self, node_id: str, *, dram_mib: int = 64, kv_mib: int = 64) -> None:
        self.node_id = node_id
        self.script = Script()
        self.calls: list[Message] = []
        self.cancelled: list[str] = []
        """Requests whose call ended before they had."""
        self.traceparents: list[str] = []
        """The trace context of each Generate call."""
        self.running: set[str] = set()
        """Requests under way."""
        self.moving: dict[str, inference_pb.Moved] = {}
        """Requests that leave at `amid_tokens`, and where to."""
        self.most_kv_bytes = 0
        """The most that the instances have held at once."""
        self.instances: dict[str, pb.Instance] = {}
        self.copies: dict[tuple[str, int], pb.CheckpointCopy] = {}
        self.links: list[pb.LinkObservation] = [
            _link(pb.TIER_REMOTE, pb.TIER_SSD, 100 * MIB),
            _link(pb.TIER_SSD, pb.TIER_DRAM, 1000 * MIB),
        ]
        self.init_seconds: float | None = 0.01
        self.revision = 0
        self.resyncs = 0
        self.lease_seconds = 0.0
        self.leaving = False
        self.silent = False
        """Sends nothing more, not even heartbeats."""
        self._dram, self._kv = dram_mib * MIB, kv_mib * MIB
        self._outbox: Outbox = asyncio.Queue()
        self._tasks: list[asyncio.Task[None]] = []
        self.address = ""

    # --- life ---------------------------------------------------------------------------------

    async def start(self, control_address: str, listen: str = "127.0.0.1:0") -> None:
        self._server = rpc.Server()
        add_NodeServiceServicer_to_server(self, self._server.grpc)
        add_InferenceServiceServicer_to_server(self, self._server.grpc)
        port = await self._server.start(listen, [])
        self.address = f"127.0.0.1:{port}"
        self._channel = rpc.channel(control_address)
        self._tasks = [
            asyncio.create_task(self._report(), name=f"{self.node_id} reports"),
            asyncio.create_task(self._beat(), name=f"{self.node_id} beats"),
        ]

    async def die(self) -> None:
        """Ends at once, as if killed."""
        await self.leave()
        await self._server.stop(0)

    async def leave(self) -> None:
        """Stops reporting, and goes on serving."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._channel.close(grace=None)

    async def _report(self) -> None:
        stub = FleetServiceStub(self._channel)
        while True:
            outbox = self._outbox = asyncio.Queue()
            self.send_full()
            try:
                async for response in stub.Report(_messages(outbox)):
                    if response.HasField("resync"):
                        self.resyncs += 1
                        self.send_full()
                    else:
                        self.lease_seconds = response.ack.lease.ToNanoseconds() / 1e9
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.05)
            finally:
                outbox.put_nowait(None)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep((self.lease_seconds or 0.3) / 3)
            self._send(heartbeat=fleet_pb.Heartbeat())

    # --- reports ------------------------------------------------------------------------------

    def send_full(self) -> None:
        node = self._node()
        node.copies.extend(self.copies.values())
        self._send(full=fleet_pb.FullReport(node=node, instances=self.instances.values()))

    def send_delta(
        self, instances: Iterable[pb.Instance] = (), copies: Iterable[pb.CheckpointCopy] = ()
    ) -> None:
        delta = fleet_pb.DeltaReport(node=self._node(), instances=instances, copies=copies)
        self._send(delta=delta)

    def _send(self, **report: Any) -> None:
        if "heartbeat" not in report:
            self.revision += 1
        if not self.silent:
            message = fleet_pb.ReportRequest(node_id=self.node_id, revision=self.revision, **report)
            self._outbox.put_nowait(message)

    def _node(self) -> pb.Node:
        node = pb.Node(
            node_id=self.node_id,
            leaving=self.leaving,
            address=self.address,
            host="fake",
            tiers=[
                pb.TierUsage(tier=pb.TIER_SSD, capacity_bytes=1024 * MIB),
                pb.TierUsage(tier=pb.TIER_DRAM, capacity_bytes=self._dram),
            ],
            links=self.links,
            kv_capacity_bytes=self._kv,
        )
        if self.init_seconds is not None:
            node.init_time.FromNanoseconds(int(self.init_seconds * 1e9))
        return node

    def set_state(self, instance: pb.Instance, state: pb.InstanceState.ValueType) -> None:
        """Changes an instance's state, and reports it."""
        instance.state = state
        if state == pb.INSTANCE_STATE_GONE:
            self.instances.pop(instance.instance_id, None)
        held = [one.digest for one in self.instances.values()]
        changed = []
        for (digest, tier), copy in self.copies.items():
            leased = (tier == pb.TIER_DRAM and digest in held) or bool(copy.holds)
            if copy.leased != leased:
                copy.leased = leased
                changed.append(copy)
        self.send_delta([instance], changed)

    def shrink(self, *, dram_mib: int) -> None:
        """Comes to have less memory for weights, and reports it."""
        self._dram = dram_mib * MIB
        self.send_delta()

    def add_copy(self, source: str, tier: pb.Tier.ValueType) -> str:
        """Makes a whole copy of a source's checkpoint known, and returns its digest."""
        digest = f"digest-of-{source}"
        size = self.script.model.size_bytes
        copy = pb.CheckpointCopy(
            digest=digest, tier=tier, size_bytes=size, resident_bytes=size, sources=[source]
        )
        if before := self.copies.get((digest, tier)):
            copy.leased = before.leased
            copy.holds.extend(before.holds)
        self.copies[digest, tier] = copy
        self.send_delta(copies=[copy])
        return digest

    # --- NodeService --------------------------------------------------------------------------

    async def InspectSource(
        self, request: node_pb.InspectSourceRequest, context: Any
    ) -> node_pb.InspectSourceResponse:
        self.calls.append(request)
        if self.script.inspect_error:
            raise self.script.inspect_error
        return node_pb.InspectSourceResponse(model=self.script.model)

    async def Promote(
        self, request: node_pb.PromoteRequest, context: Any
    ) -> AsyncIterator[node_pb.PromoteResponse]:
        self.calls.append(request)
        yield node_pb.PromoteResponse(loading=self._loading(pb.LOAD_PHASE_IMPORT))
        await self.script.before_promoted.passed()
        if self.script.promote_error:
            raise self.script.promote_error
        digest = self.add_copy(request.source, pb.TIER_SSD)
        if request.tier == pb.TIER_DRAM:
            self.add_copy(request.source, pb.TIER_DRAM)
        if request.hold_id:
            self._hold(request, digest)
        yield node_pb.PromoteResponse(done=node_pb.PromoteDone(model=self._model(digest)))

    def _hold(self, request: node_pb.PromoteRequest, digest: str) -> None:
        hold = pb.Hold(hold_id=request.hold_id)
        if request.HasField("hold_ttl"):
            hold.expires_at.FromNanoseconds(time.time_ns() + request.hold_ttl.ToNanoseconds())
        self._drop_hold(request.hold_id)
        copy = self.copies[digest, request.tier]
        copy.holds.append(hold)
        copy.leased = True
        self.send_delta(copies=[copy])

    async def ReleaseHold(
        self, request: node_pb.ReleaseHoldRequest, context: Any
    ) -> node_pb.ReleaseHoldResponse:
        self.calls.append(request)
        self._drop_hold(request.hold_id)
        return node_pb.ReleaseHoldResponse()

    def _drop_hold(self, hold_id: str) -> None:
        for copy in self.copies.values():
            kept = [hold for hold in copy.holds if hold.hold_id != hold_id]
            if len(kept) < len(copy.holds):
                del copy.holds[:]
                copy.holds.extend(kept)
                copy.leased = bool(kept)
                self.send_delta(copies=[copy])

    def holds(self) -> dict[str, tuple[str, int]]:
        """The digest and the tier of what is held, by the hold's id."""
        return {
            hold.hold_id: (digest, tier)
            for (digest, tier), copy in self.copies.items()
            for hold in copy.holds
        }

    async def StartInstance(
        self, request: node_pb.StartInstanceRequest, context: Any
    ) -> AsyncIterator[node_pb.StartInstanceResponse]:
        self.calls.append(request)
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
        self.set_state(instance, pb.INSTANCE_STATE_READY)
        phase = pb.Phase(kind=pb.PHASE_KIND_READ_SSD, size_bytes=10)
        phase.duration.FromMilliseconds(1)
        ready = node_pb.InstanceReady(
            instance=instance,
            phases=[phase],
            from_tier=pb.TIER_SSD,
            model=self._model(instance.digest),
        )
        yield node_pb.StartInstanceResponse(ready=ready)

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
        )
        self.instances[request.instance_id] = instance
        self.set_state(instance, pb.INSTANCE_STATE_STARTING)
        return instance

    async def StopInstance(
        self, request: node_pb.StopInstanceRequest, context: Any
    ) -> node_pb.StopInstanceResponse:
        self.calls.append(request)
        await self.script.before_stop.passed()
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
            done = node_pb.MigrationDone(rounds=1, tokens=5)
            yield node_pb.StartMigrationResponse(request_id=request_id, done=done)

    async def Evict(self, request: node_pb.EvictRequest, context: Any) -> node_pb.EvictResponse:
        self.calls.append(request)
        return node_pb.EvictResponse()

    def _loading(self, phase: pb.LoadPhase.ValueType) -> pb.Loading:
        total = self.script.model.size_bytes
        return pb.Loading(phase=phase, from_tier=pb.TIER_SSD, loaded_bytes=1, total_bytes=total)

    def _model(self, digest: str) -> pb.ModelInfo:
        model = pb.ModelInfo()
        model.CopyFrom(self.script.model)
        model.digest = digest
        return model

    # --- InferenceService ---------------------------------------------------------------------

    async def Generate(
        self, request: inference_pb.GenerateRequest, context: Any
    ) -> AsyncIterator[inference_pb.GenerateResponse]:
        self.calls.append(request)
        metadata = dict(context.invocation_metadata())
        self.traceparents.append(metadata.get("traceparent", ""))
        instance = self.instances.get(request.instance_id)
        if instance is None or instance.state != pb.INSTANCE_STATE_READY:
            raise errors.InstanceNotFound(f"no ready instance {request.instance_id}")
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

    async def _events(
        self, request: inference_pb.GenerateRequest
    ) -> AsyncIterator[inference_pb.GenerateResponse]:
        Response = inference_pb.GenerateResponse
        yield Response(
            started=inference_pb.Started(
                instance_id=request.instance_id,
                node_id=self.node_id,
                prompt_tokens=2,
                request_id=request.request_id,
                prompt_token_ids=() if request.HasField("token_ids") else (7, 8),
            )
        )
        await self.script.before_tokens.passed()
        if self.script.generate_errors:
            raise self.script.generate_errors.pop(0)
        count = request.max_tokens or 3
        for index in range(len(request.continuation.token_ids), count):
            tokens = inference_pb.Tokens(first_index=index, token_ids=[index], text=f"{index} ")
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
                receipt=pb.Receipt(phases=[prefill]),
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


async def _messages(outbox: Outbox) -> AsyncIterator[fleet_pb.ReportRequest]:
    while (message := await outbox.get()) is not None:
        yield message


def _link(
    from_tier: pb.Tier.ValueType, to_tier: pb.Tier.ValueType, bandwidth: float
) -> pb.LinkObservation:
    return pb.LinkObservation(from_tier=from_tier, to_tier=to_tier, bytes_per_second=bandwidth)
