"""The node's servicers: each method parses, calls the agent and translates."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from serverlessllm.v1 import inference_service_pb2 as inference_pb
from serverlessllm.v1 import migration_service_pb2 as migration_pb
from serverlessllm.v1 import node_service_pb2 as pb
from serverlessllm.v1.inference_service_pb2_grpc import InferenceServiceServicer
from serverlessllm.v1.migration_service_pb2_grpc import MigrationServiceServicer
from serverlessllm.v1.node_service_pb2_grpc import NodeServiceServicer

from sllm import errors
from sllm.clock import Clock
from sllm.node.agent import Agent
from sllm.node.generations import wire
from sllm.node.generations.generations import Generations
from sllm.node.generations.incoming_migration import Immigration
from sllm.node.generations.migration_stream import OPEN_SECONDS
from sllm.node.generations.outgoing_generation import Destination, Terms
from sllm.node.generations.outgoing_migration import Emigration


class NodeServicer(NodeServiceServicer):
    """What the control plane asks of this node."""

    def __init__(self, agent: Agent, generations: Generations, node_id: str, clock: Clock) -> None:
        self._agent = agent
        self._generations = generations
        self._node_id = node_id
        self._clock = clock

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
        promotion = self._agent.promote(
            request.source, dtype, tier, hold, pack=request.pack, give_up=request.give_up
        )
        async with aclosing(promotion) as steps:
            async for progress in steps:
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
        async with aclosing(instance.follow_start()) as steps:
            async for progress in steps:
                yield pb.StartInstanceResponse(loading=wire.loading(progress))
        yield pb.StartInstanceResponse(ready=wire.ready_message(instance, self._node_id))

    async def StopInstance(
        self, request: pb.StopInstanceRequest, context: Any
    ) -> pb.StopInstanceResponse:
        """Ends an instance."""
        await self._agent.stop_instance(request.instance_id, request.grace.ToNanoseconds() / 1e9)
        return pb.StopInstanceResponse()

    async def StartMigration(
        self, request: pb.StartMigrationRequest, context: Any
    ) -> AsyncIterator[pb.StartMigrationResponse]:
        """Moves generations to another node."""
        running = self._agent.instance(request.instance_id).running
        chosen = self._generations.chosen(request.instance_id, request.request_ids)
        to = Destination(request.to_node_id, request.to_address, request.to_instance_id)
        terms = Terms(to, request.reason, running.context_tokens if running else 0)
        emigration = Emigration(terms, self._node_id, self._clock)
        async with aclosing(emigration.run(chosen)) as told:
            async for news in told:
                yield news

    async def Evict(self, request: pb.EvictRequest, context: Any) -> pb.EvictResponse:
        """Frees a checkpoint's room on a tier."""
        await self._agent.evict(request.digest, wire.evictable_tier(request.tier))
        return pb.EvictResponse()


class InferenceServicer(InferenceServiceServicer):
    """Token streams of this node's instances."""

    def __init__(self, generations: Generations) -> None:
        self._generations = generations

    async def Generate(
        self, request: inference_pb.GenerateRequest, context: Any
    ) -> AsyncIterator[inference_pb.GenerateResponse]:
        """Runs a request on the instance that the router chose, or reads on in one."""
        async with aclosing(self._generations.read(request)) as events:
            async for event in events:
                yield event

    async def Cancel(
        self, request: inference_pb.CancelRequest, context: Any
    ) -> inference_pb.CancelResponse:
        """Ends a request from outside its stream."""
        self._generations.cancel(request.request_id)
        return inference_pb.CancelResponse()


class MigrationServicer(MigrationServiceServicer):
    """Generations that come from other nodes."""

    def __init__(self, agent: Agent, generations: Generations, node_id: str, clock: Clock) -> None:
        self._agent = agent
        self._generations = generations
        self._node_id = node_id
        self._clock = clock

    async def Migrate(
        self,
        request_iterator: AsyncIterator[migration_pb.MigrationServiceMigrateRequest],
        context: Any,
    ) -> AsyncIterator[migration_pb.MigrationServiceMigrateResponse]:
        """Computes what comes, and goes on with it."""
        instance = self._agent.instance(await _migrated_to(request_iterator))
        worker = instance.ready_worker()
        context_tokens = instance.running.context_tokens if instance.running else 0
        opened = migration_pb.MigrationOpened(context_tokens=context_tokens)
        yield migration_pb.MigrationServiceMigrateResponse(opened=opened)
        immigration = Immigration(self._generations, worker, self._node_id, self._clock)
        async with aclosing(immigration.follow(request_iterator)) as answers:
            async for answer in answers:
                yield answer


async def _migrated_to(
    steps: AsyncIterator[migration_pb.MigrationServiceMigrateRequest],
) -> str:
    """The instance that a migration's first message names.

    Raises:
        errors.InvalidArgument: It names none, or there is no message.
        errors.DeadlineExceeded: Nothing has come.
    """
    try:
        first = await asyncio.wait_for(anext(steps, None), OPEN_SECONDS)
    except TimeoutError:
        raise errors.DeadlineExceeded(f"no message has come within {OPEN_SECONDS:g} s") from None
    if first is None or not first.HasField("open"):
        raise errors.InvalidArgument("a migration begins with `open`, which names the instance")
    return first.open.instance_id
