"""What the control plane asks of this node: each method parses, calls the agent and translates."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from serverlessllm.v1 import node_service_pb2 as pb
from serverlessllm.v1.node_service_pb2_grpc import NodeServiceServicer

from sllm import bounds, rpc
from sllm.clock import Clock
from sllm.node.agent import Agent
from sllm.node.api import reports, wire
from sllm.node.api.terms import Terms
from sllm.node.generations.generations import Generations
from sllm.node.generations.multiplexer import Multiplexer
from sllm.node.generations.outgoing_migration import OutgoingMigration
from sllm.node.instances.zygotes import AUTO, check_has
from sllm.node.tiers.types import EVICTED_FROM


class NodeServicer(NodeServiceServicer):
    """What the control plane asks of this node."""

    def __init__(
        self,
        agent: Agent,
        generations: Generations,
        node_id: str,
        clock: Clock,
        terms: Terms,
        dial: rpc.Dial = rpc.channel,
    ) -> None:
        """`terms` says whose orders are taken; `dial` leads to other nodes."""
        self._agent = agent
        self._terms = terms
        self._generations = generations
        self._node_id = node_id
        self._clock = clock
        self._dial = dial

    async def InspectSource(
        self, request: pb.InspectSourceRequest, context: Any
    ) -> pb.InspectSourceResponse:
        """Says what the model at a source needs."""
        engine, dtype = request.engine or AUTO, request.dtype or None
        if request.HasField("base"):
            base = wire.adapter_base(request.base, engine)
            adapter = await self._agent.inspector.inspect_adapter(request.source, dtype, base)
            return pb.InspectSourceResponse(model=wire.adapter_info(adapter), engine=engine)
        model = await self._agent.inspector.inspect(
            request.source,
            dtype,
            engine=engine,
            parsers=wire.parser_names(request),
            takes_adapters=request.max_adapters > 0,
            ranks=wire.tensor_parallel(request),
            expert_memory=wire.expert_bytes(request),
        )
        return pb.InspectSourceResponse(model=wire.model_info(model), engine=model.engine)

    async def Promote(
        self, request: pb.PromoteRequest, context: Any
    ) -> AsyncIterator[pb.PromoteResponse]:
        """Brings a checkpoint up to a tier."""
        wanted = wire.promotion(request)
        check_has(wanted.engine, self._agent.zygotes.states)
        async with aclosing(self._agent.contents.promote(wanted)) as steps:
            async for progress in steps:
                yield pb.PromoteResponse(loading=wire.loading(progress))
        held = await self._agent.inspector.inspect_promoted(
            wanted.source, wanted.dtype, wanted.identity, wanted.engine, wanted.tensor_parallel
        )
        yield pb.PromoteResponse(done=pb.PromoteDone(model=wire.info(held)))

    async def ReleaseHold(
        self, request: pb.ReleaseHoldRequest, context: Any
    ) -> pb.ReleaseHoldResponse:
        """Ends a hold: the checkpoint may be evicted again."""
        self._agent.contents.holds.release(request.hold_id)
        return pb.ReleaseHoldResponse()

    async def StartInstance(
        self, request: pb.StartInstanceRequest, context: Any
    ) -> AsyncIterator[pb.StartInstanceResponse]:
        """Starts an instance, or joins its start."""
        instance = self._agent.instances.start(wire.instance_spec(request))
        async with aclosing(instance.follow_start()) as steps:
            async for progress in steps:
                yield pb.StartInstanceResponse(loading=wire.loading(progress))
        yield pb.StartInstanceResponse(ready=reports.ready_message(instance, self._node_id))

    async def StopInstance(
        self, request: pb.StopInstanceRequest, context: Any
    ) -> pb.StopInstanceResponse:
        """Ends an instance."""
        grace = bounds.duration(request.grace, "grace")
        keep = bounds.duration(request.keep_weights, "keep_weights")
        instance = self._agent.instances.by_id.get(request.instance_id)
        await self._agent.instances.stop(request.instance_id, grace)
        if request.HasField("keep_weights") and instance and instance.running:
            self._agent.store.wanted_for(instance.running.digest, keep)
        return pb.StopInstanceResponse()

    async def StartMigration(
        self, request: pb.StartMigrationRequest, context: Any
    ) -> AsyncIterator[pb.StartMigrationResponse]:
        """Moves generations to another node."""
        instance = self._agent.instances.find(request.instance_id)
        chosen = self._generations.chosen(request.instance_id, request.request_ids)
        terms = wire.migration_terms(request, instance, self._agent.store.fetching_pages.here)
        migration = OutgoingMigration(terms, self._node_id, self._clock, self._dial)
        async with aclosing(migration.run(chosen)) as told:
            async for news in told:
                yield news

    async def Multiplex(
        self, request_iterator: AsyncIterator[pb.MultiplexRequest], context: Any
    ) -> AsyncIterator[pb.MultiplexResponse]:
        """Runs requests, or reads on in them, for one router."""
        multiplexer = Multiplexer(self._generations.read)
        with self._terms.until_deposed(multiplexer.end):
            async with aclosing(multiplexer.follow(request_iterator)) as steps:
                async for step in steps:
                    yield step

    async def Evict(self, request: pb.EvictRequest, context: Any) -> pb.EvictResponse:
        """Frees a checkpoint's room on a tier."""
        await self._agent.contents.evict(
            request.digest, bounds.one_of(request.tier, EVICTED_FROM, "tier")
        )
        return pb.EvictResponse()
