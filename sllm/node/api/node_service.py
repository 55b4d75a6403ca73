"""What the control plane asks of this node: each method parses, calls the agent and translates."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from serverlessllm.v1 import node_service_pb2 as pb
from serverlessllm.v1.node_service_pb2_grpc import NodeServiceServicer

from sllm import bounds
from sllm.clock import Clock
from sllm.node.agent import Agent
from sllm.node.api import wire
from sllm.node.generations.generations import Generations
from sllm.node.generations.multiplexer import Multiplexer
from sllm.node.generations.outgoing_migration import OutgoingMigration
from sllm.node.instances.zygotes import AUTO, check_has
from sllm.node.tiers.types import EVICTED_FROM, STORED_ON


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
        engine, dtype = request.engine or AUTO, request.dtype or None
        if request.HasField("base"):
            base = wire.adapter_base(request.base, engine)
            adapter = await self._agent.inspect_adapter(request.source, dtype, base)
            return pb.InspectSourceResponse(model=wire.adapter_info(adapter), engine=engine)
        model = await self._agent.inspect(
            request.source,
            dtype,
            engine=engine,
            parsers=wire.parser_names(request),
            takes_adapters=request.max_adapters > 0,
        )
        return pb.InspectSourceResponse(model=wire.model_info(model), engine=model.engine)

    async def Promote(
        self, request: pb.PromoteRequest, context: Any
    ) -> AsyncIterator[pb.PromoteResponse]:
        """Brings a checkpoint up to a tier."""
        tier, dtype = bounds.one_of(request.tier, STORED_ON, "tier"), request.dtype or None
        hold, engine = wire.hold_spec(request), request.engine or AUTO
        check_has(engine, self._agent.engines)
        promotion = self._agent.promote(
            request.source,
            dtype,
            tier,
            hold,
            pack=request.pack,
            give_up=request.give_up,
            identity=request.identity,
        )
        async with aclosing(promotion) as steps:
            async for progress in steps:
                yield pb.PromoteResponse(loading=wire.loading(progress))
        held = await self._agent.describe_promoted(request.source, dtype, request.identity, engine)
        yield pb.PromoteResponse(done=pb.PromoteDone(model=wire.info(held)))

    async def ReleaseHold(
        self, request: pb.ReleaseHoldRequest, context: Any
    ) -> pb.ReleaseHoldResponse:
        """Ends a hold: the checkpoint may be evicted again."""
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
        grace = bounds.duration(request.grace, "grace")
        await self._agent.stop_instance(request.instance_id, grace)
        return pb.StopInstanceResponse()

    async def StartMigration(
        self, request: pb.StartMigrationRequest, context: Any
    ) -> AsyncIterator[pb.StartMigrationResponse]:
        """Moves generations to another node."""
        instance = self._agent.instance(request.instance_id)
        running = instance.running
        chosen = self._generations.chosen(request.instance_id, request.request_ids)
        context_tokens = running.context_tokens if running else 0
        terms = wire.migration_terms(request, context_tokens, instance.identity)
        migration = OutgoingMigration(terms, self._node_id, self._clock)
        async with aclosing(migration.run(chosen)) as told:
            async for news in told:
                yield news

    async def Multiplex(
        self, request_iterator: AsyncIterator[pb.MultiplexRequest], context: Any
    ) -> AsyncIterator[pb.MultiplexResponse]:
        """Runs requests, or reads on in them, for one router."""
        multiplexer = Multiplexer(self._generations.read)
        async with aclosing(multiplexer.follow(request_iterator)) as steps:
            async for step in steps:
                yield step

    async def Evict(self, request: pb.EvictRequest, context: Any) -> pb.EvictResponse:
        """Frees a checkpoint's room on a tier."""
        await self._agent.evict(request.digest, bounds.one_of(request.tier, EVICTED_FROM, "tier"))
        return pb.EvictResponse()
