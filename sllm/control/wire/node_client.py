"""Clients of node agents: one channel per node, made when it reports and closed when it is lost."""

import asyncio
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar

import grpc
from serverlessllm.v1 import inference_service_pb2 as inference_pb
from serverlessllm.v1 import node_service_pb2 as pb
from serverlessllm.v1 import types_pb2 as types_pb
from serverlessllm.v1.embedding_service_pb2_grpc import EmbeddingServiceStub
from serverlessllm.v1.inference_service_pb2_grpc import InferenceServiceStub
from serverlessllm.v1.model_service_pb2_grpc import ModelServiceStub
from serverlessllm.v1.node_service_pb2_grpc import NodeServiceStub

from sllm import errors, rpc
from sllm.control.cluster.instances import Instance
from sllm.control.cluster.nodes import NodeFacts
from sllm.control.cluster.specs import TRANSFORMERS, Deployment, EngineConfig, ModelInfo
from sllm.control.cluster.tiers import Tier
from sllm.control.types.migrations import Ended, MigrationReason, Moved, News, Round, Stayed
from sllm.control.types.receipts import Phase
from sllm.control.types.status import Loading
from sllm.control.wire import common, deployments, fleet, generations
from sllm.control.wire.answers import AnswerCall
from sllm.control.wire.multiplex import GenerateCall, Multiplex

Question = TypeVar("Question")
Answer = TypeVar("Answer")

_INSPECT_SECONDS = 180.0
"""A node that comes up is still importing its engines."""
_ASK_SECONDS = 60.0
_RELEASE_SECONDS = 10.0
_MIGRATION_SECONDS = 600.0
_CANCEL_SECONDS = 5.0
_STOP_SECONDS = 30.0
"""Time that a node has to end a worker, beyond the grace."""


@dataclass(frozen=True, slots=True)
class HoldSpec:
    """The hold that a promotion leaves behind."""

    hold_id: str
    """Unique on the node; a hold of the same id is replaced."""
    ttl: float | None
    """Seconds, from when the checkpoint is there. None: until it is released."""


@dataclass(frozen=True, slots=True)
class Ready:
    """The end of a start."""

    instance: Instance
    phases: tuple[Phase, ...]
    """Counted from the node's taking the call."""
    from_tier: Tier | None
    model: ModelInfo


@dataclass(frozen=True, slots=True)
class Inspected:
    """What a node has found at a source."""

    model: ModelInfo
    engine: str
    """That it runs on."""


class Node:
    """One node agent. Every call raises typed errors; NodeLost once the node is gone."""

    def __init__(self, facts: NodeFacts) -> None:
        self.node_id = facts.node_id
        self.address = facts.address
        self._lost = False
        self._channel = rpc.channel(facts.address)
        self._node = NodeServiceStub(self._channel)
        self._inference = InferenceServiceStub(self._channel)
        self.models = ModelServiceStub(self._channel)
        """What can be asked of models with `ask`."""
        self.encoders = EmbeddingServiceStub(self._channel)
        """What can be had of models with `encode`."""
        self._multiplex = Multiplex(self._node, self.typed_errors)

    @contextmanager
    def typed_errors(self) -> Iterator[None]:
        """Raises typed errors for the calls inside; the end of the node as NodeLost."""
        try:
            with rpc.typed_errors():
                yield
        except errors.Unreachable as error:
            raise self._gone(str(error)) from error
        except errors.Cancelled as error:
            if not self._lost:
                raise
            raise self._gone("it has stopped reporting") from error
        except grpc.aio.UsageError as error:  # its channel was closed before the call began
            raise self._gone("it has stopped reporting") from error
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if not self._lost or (task and task.cancelling()):
                raise
            raise self._gone("it has stopped reporting") from error

    async def inspect(self, source: str, config: EngineConfig) -> Inspected:
        """What the model at `source` needs, and the engine that it runs on, or why it cannot."""
        request = pb.InspectSourceRequest(
            source=source,
            dtype=config.dtype,
            engine=config.engine,
            tool_parser=config.tool_parser,
            reasoning_parser=config.reasoning_parser,
            max_adapters=config.max_adapters,
        )
        return await self._inspect(request)

    async def inspect_adapter(self, source: str, dtype: str, base: Deployment) -> Inspected:
        """What the adapter at `source` is, or why it cannot be served over its base."""
        engine = base.spec.engine
        request = pb.InspectSourceRequest(
            source=source,
            dtype=dtype,
            engine=engine.engine,
            base=pb.AdapterBase(
                source=base.spec.source,
                dtype=engine.dtype,
                identity=base.model.identity,
                max_adapter_rank=engine.adapter_rank,
            ),
        )
        return await self._inspect(request)

    async def _inspect(self, request: pb.InspectSourceRequest) -> Inspected:
        with self.typed_errors():
            response = await self._node.InspectSource(request, timeout=_INSPECT_SECONDS)
        found = response.engine or TRANSFORMERS  # nodes of earlier versions have no other
        return Inspected(deployments.model_info(response.model), found)

    async def ask(
        self, method: grpc.aio.UnaryUnaryMultiCallable[Question, Answer], question: Question
    ) -> Answer:
        """Asks what a model makes of text: `method` is one of `models`."""
        with self.typed_errors():
            return await method(question, timeout=_ASK_SECONDS, metadata=rpc.trace_metadata())

    def encode(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[Question, Answer],
        question: Question,
        timeout: float | None,
        trace: Mapping[str, str],
    ) -> AnswerCall[Answer]:
        """Has an instance make vectors or scores: `method` is one of `encoders`."""

        async def answering() -> Answer:
            with self.typed_errors():
                metadata = tuple(trace.items())
                return await method(question, timeout=timeout, metadata=metadata)

        return AnswerCall(answering())

    async def promote(
        self,
        source: str,
        dtype: str,
        tier: Tier,
        timeout: float,
        hold: HoldSpec | None = None,
        *,
        pack: bool = False,
        give_up: bool = False,
        identity: str = "",
        engine: str = "",
    ) -> AsyncGenerator[Loading | ModelInfo, None]:
        """Brings a checkpoint to a tier and holds it there; yields progress, then the model."""
        request = pb.PromoteRequest(
            source=source,
            dtype=dtype,
            tier=types_pb.Tier.ValueType(tier),
            pack=pack,
            give_up=give_up,
            identity=identity,
            engine=engine,
        )
        if hold:
            request.hold_id = hold.hold_id
        if hold and hold.ttl is not None:
            request.hold_ttl.CopyFrom(common.duration(hold.ttl))
        with self.typed_errors():
            async for response in self._node.Promote(request, timeout=timeout):
                if response.HasField("done"):
                    yield deployments.model_info(response.done.model)
                else:
                    yield common.loading(response.loading)

    async def release_hold(self, hold_id: str) -> None:
        """Lets a checkpoint be evicted that was held; an unknown hold is no error."""
        request = pb.ReleaseHoldRequest(hold_id=hold_id)
        with self.typed_errors():
            await self._node.ReleaseHold(request, timeout=_RELEASE_SECONDS)

    async def evict(self, digest: str, tier: Tier) -> None:
        """Frees a checkpoint's room on a tier, unless it is in use there."""
        request = pb.EvictRequest(digest=digest, tier=types_pb.Tier.ValueType(tier))
        with self.typed_errors():
            await self._node.Evict(request, timeout=_RELEASE_SECONDS)

    async def start_instance(
        self, deployment: Deployment, instance: Instance, timeout: float
    ) -> AsyncGenerator[Loading | Ready, None]:
        """Starts an instance or joins its start; yields progress, then what is ready."""
        request = _start_request(deployment, instance)
        metadata = rpc.trace_metadata()
        call = self._node.StartInstance(request, timeout=timeout, metadata=metadata)
        with self.typed_errors():
            async for response in call:
                yield _step(response, self.node_id)

    async def stop_instance(self, instance_id: str, grace: float) -> None:
        """Returns when the instance is gone."""
        request = pb.StopInstanceRequest(instance_id=instance_id, grace=common.duration(grace))
        with self.typed_errors():
            await self._node.StopInstance(request, timeout=grace + _STOP_SECONDS)

    async def migrate(
        self,
        instance_id: str,
        request_ids: Sequence[str],
        to: "Node",
        into: Instance,
        reason: MigrationReason,
    ) -> AsyncGenerator[News, None]:
        """Moves generations of an instance to one of another node."""
        request = pb.StartMigrationRequest(
            instance_id=instance_id,
            request_ids=request_ids,
            to_node_id=to.node_id,
            to_address=to.address,
            to_instance_id=into.instance_id,
            reason=inference_pb.MigrationReason.ValueType(reason),
        )
        call = self._node.StartMigration(request, timeout=_MIGRATION_SECONDS)
        try:
            with self.typed_errors():
                async for response in call:
                    yield _migration_news(response)
        finally:
            call.cancel()

    async def cancel(self, request_id: str) -> None:
        """Ends a generation, also one that lingers; one that is not there has ended."""
        request = inference_pb.CancelRequest(request_id=request_id)
        with suppress(errors.RequestNotFound), self.typed_errors():
            await self._inference.Cancel(request, timeout=_CANCEL_SECONDS)

    def generate(
        self,
        request: inference_pb.GenerateRequest,
        timeout: float | None,
        trace: Mapping[str, str],
    ) -> GenerateCall:
        """Begins a request on an instance; see `Multiplex.begin`."""
        return self._multiplex.begin(request, timeout, trace)

    async def close(self) -> None:
        """Ends every call that is under way with NodeLost."""
        self._lost = True
        await self._channel.close(grace=None)
        await self._multiplex.close()

    def _gone(self, why: str) -> errors.NodeLost:
        return errors.NodeLost(
            f"node {self.node_id} is lost: {why}; try again",
            metadata={"node_id": self.node_id},
            retry_after=1.0,
        )


class Nodes:
    """The clients of all nodes that are members."""

    def __init__(self) -> None:
        self._nodes: dict[str, Node] = {}

    def __len__(self) -> int:
        return len(self._nodes)

    @property
    def by_id(self) -> Mapping[str, Node]:
        """Every member."""
        return self._nodes

    def member(self, node_id: str) -> Node:
        """The client of one node.

        Raises:
            errors.NodeNotFound: It is no member, or no longer.
        """
        node = self._nodes.get(node_id)
        if node is None:
            raise errors.NodeNotFound(
                f"node {node_id!r} is not there; ListNodes tells which nodes are"
            )
        return node

    def join(self, facts: NodeFacts) -> Node | None:
        """Makes the client of a node; returns one of another address, which is to be closed."""
        before = self._nodes.get(facts.node_id)
        if before and before.address == facts.address:
            return None
        self._nodes[facts.node_id] = Node(facts)
        return before

    def drop(self, node_id: str) -> Node | None:
        """Takes out the client of a lost node, which is to be closed."""
        return self._nodes.pop(node_id, None)

    async def close(self) -> None:
        """Closes all channels."""
        nodes, self._nodes = list(self._nodes.values()), {}
        await asyncio.gather(*(node.close() for node in nodes))


def _start_request(deployment: Deployment, one: Instance) -> pb.StartInstanceRequest:
    """What a node is told to start."""
    return pb.StartInstanceRequest(
        instance_id=one.instance_id,
        deployment=deployment.name,
        source=deployment.spec.source,
        engine=deployments.engine_message(deployment.spec.engine),
        kv_bytes=one.kv_bytes,
        identity=deployment.model.identity,
        private_bytes=one.private_bytes,
    )


def _migration_news(response: pb.StartMigrationResponse) -> News:
    """What a node says of a generation that it moves."""
    request_id = response.request_id
    match response.WhichOneof("event"):
        case "progress":
            one = response.progress
            return Round(request_id, one.round, one.computed_tokens, one.gap_tokens)
        case "done":
            done = response.done
            times = common.seconds(done.duration), common.seconds(done.cutover)
            return Moved(request_id, done.rounds, done.tokens, *times, done.gap_tokens)
        case "failure":
            failure = response.failure
            error = errors.make_error(failure.code, failure.reason, failure.message)
            return Stayed(request_id, error)
        case _:
            return Ended(request_id)


def _step(response: pb.StartInstanceResponse, node_id: str) -> Loading | Ready:
    if response.HasField("ready"):
        return _ready(response.ready, node_id)
    return common.loading(response.loading)


def _ready(message: pb.InstanceReady, node_id: str) -> Ready:
    return Ready(
        instance=fleet.instance(message.instance, node_id),
        phases=generations.phases(message.phases),
        from_tier=common.tier(message.from_tier),
        model=deployments.model_info(message.model),
    )
