"""The node's servicers: each method parses, calls the agent and translates."""

from collections.abc import AsyncIterator
from typing import Any

from serverlessllm.v1 import inference_service_pb2 as inference_pb
from serverlessllm.v1 import node_service_pb2 as pb
from serverlessllm.v1.inference_service_pb2_grpc import InferenceServiceServicer
from serverlessllm.v1.node_service_pb2_grpc import NodeServiceServicer

from sllm import errors
from sllm.clock import Clock
from sllm.node import wire
from sllm.node.agent import Agent
from sllm.node.generate import Generation
from sllm.node.workers import Worker


class NodeServicer(NodeServiceServicer):
    """What the control plane asks of this node."""

    def __init__(self, agent: Agent, node_id: str) -> None:
        self._agent = agent
        self._node_id = node_id

    async def InspectSource(
        self, request: pb.InspectSourceRequest, context: Any
    ) -> pb.InspectSourceResponse:
        """Says what the model at a source needs."""
        model = await self._agent.inspect(request.source, request.dtype or None)
        return pb.InspectSourceResponse(model=wire.model_info(model))

    async def Promote(
        self, request: pb.PromoteRequest, context: Any
    ) -> AsyncIterator[pb.PromoteResponse]:
        """Brings a checkpoint up to a tier."""
        tier, dtype = wire.storage_tier(request.tier), request.dtype or None
        hold = wire.hold_spec(request)
        async for progress in self._agent.promote(request.source, dtype, tier, hold):
            yield pb.PromoteResponse(loading=wire.loading(progress))
        model = await self._agent.inspect(request.source, dtype)
        yield pb.PromoteResponse(done=pb.PromoteDone(model=wire.model_info(model)))

    async def ReleaseHold(
        self, request: pb.ReleaseHoldRequest, context: Any
    ) -> pb.ReleaseHoldResponse:
        """Lets a checkpoint be evicted that was held."""
        self._agent.holds.release(request.hold_id)
        return pb.ReleaseHoldResponse()

    async def StartInstance(
        self, request: pb.StartInstanceRequest, context: Any
    ) -> AsyncIterator[pb.StartInstanceResponse]:
        """Starts an instance, or joins its start."""
        instance = self._agent.start_instance(wire.instance_spec(request))
        async for progress in instance.follow_start():
            yield pb.StartInstanceResponse(loading=wire.loading(progress))
        model = await self._agent.inspect(request.source, request.engine.dtype or None)
        yield pb.StartInstanceResponse(ready=wire.ready_message(instance, self._node_id, model))

    async def StopInstance(
        self, request: pb.StopInstanceRequest, context: Any
    ) -> pb.StopInstanceResponse:
        """Ends an instance."""
        await self._agent.stop_instance(request.instance_id, request.grace.ToNanoseconds() / 1e9)
        return pb.StopInstanceResponse()

    async def Evict(self, request: pb.EvictRequest, context: Any) -> pb.EvictResponse:
        """Frees a checkpoint's room on a tier."""
        await self._agent.store.evict(request.digest, wire.storage_tier(request.tier))
        return pb.EvictResponse()


class InferenceServicer(InferenceServiceServicer):
    """Token streams of this node's instances."""

    def __init__(self, agent: Agent, node_id: str, clock: Clock) -> None:
        self._agent = agent
        self._node_id = node_id
        self._clock = clock
        self._workers: dict[str, Worker] = {}

    async def Generate(
        self, request: inference_pb.GenerateRequest, context: Any
    ) -> AsyncIterator[inference_pb.GenerateResponse]:
        """Runs a request on the instance that the router chose."""
        worker = self._agent.instance(request.instance_id).ready_worker()
        if request.request_id in self._workers:
            raise errors.RequestIdInUse(f"request {request.request_id} is already under way")
        self._workers[request.request_id] = worker
        try:
            async for event in Generation(request, self._node_id, self._clock).events(worker):
                yield event
        finally:
            del self._workers[request.request_id]

    async def Cancel(
        self, request: inference_pb.CancelRequest, context: Any
    ) -> inference_pb.CancelResponse:
        """Ends a request from outside its stream."""
        worker = self._workers.get(request.request_id)
        if worker is None:
            raise errors.RequestNotFound(f"no request {request.request_id} is under way here")
        worker.cancel(request.request_id)
        return inference_pb.CancelResponse()
