"""The client of a node agent, on one channel."""

import asyncio
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Protocol, TypeVar
from weakref import WeakSet

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
from sllm.control.cluster.specs import Deployment, EngineConfig, ModelInfo
from sllm.control.cluster.tiers import Tier
from sllm.control.types.authority import ALONE, Authority
from sllm.control.types.givers import NO_HELPERS, Givers, Helpers
from sllm.control.types.migrations import MigrationAsk, News
from sllm.control.types.status import Loading
from sllm.control.wire import common, deployments, node_messages
from sllm.control.wire.answers import AnswerCall
from sllm.control.wire.carriage import Carriage
from sllm.control.wire.multiplex import GenerateCall, Multiplex
from sllm.control.wire.node_messages import HoldSpec, Inspected, Ready

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


class NodeAddress(Protocol):
    """Which node, and where it is."""

    @property
    def node_id(self) -> str:
        """Its name."""
        ...

    @property
    def address(self) -> str:
        """host:port."""
        ...


class Node:
    """One node agent. Every call raises typed errors; NodeLost once the node is gone."""

    def __init__(
        self, at: NodeAddress, dial: rpc.Dial = rpc.channel, authority: Authority = ALONE
    ) -> None:
        """`dial` leads to it, and by `authority` it is given orders."""
        self.node_id = at.node_id
        self._authority = authority
        self.address = at.address
        self._lost = False
        self._channel = dial(at.address)
        self._node = NodeServiceStub(self._channel)
        self._inference = InferenceServiceStub(self._channel)
        self.models = ModelServiceStub(self._channel)
        """What can be asked of models with `ask`."""
        self.encoders = EmbeddingServiceStub(self._channel)
        """What can be had of models with `encode`."""
        self._carriages: WeakSet[Carriage] = WeakSet()
        """Of generations that others carry from it, or have carried."""
        self._multiplex = Multiplex(self._node, self.typed_errors, self._orders)

    @contextmanager
    def typed_errors(self) -> Iterator[None]:
        """Raises typed errors for the calls inside; the end of the node as NodeLost."""
        try:
            with rpc.typed_errors():
                yield
        except errors.StaleTerm as error:
            self._authority.refused(error)
            raise errors.NotLeader(
                f"another control plane leads, as node {self.node_id} knows: try again",
                retry_after=1.0,
            ) from error
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

    def _orders(self) -> grpc.aio.Metadata:
        """What goes with every call: the current trace, and the term in which it is made.

        Raises:
            errors.NotLeader: Another control plane may lead by now.
        """
        return rpc.order_metadata(self._authority.term())

    def tell_term(self) -> None:
        """Has the node hear in which term it is called, before it is given an order.

        From then on it refuses whoever led before. Where there are no terms nothing is told; a node
        that cannot be reached is told when this is called again.
        """
        with suppress(errors.NotLeader):
            if self._authority.term() is not None and not self._lost:
                self._multiplex.open()

    async def inspect(self, source: str, config: EngineConfig) -> Inspected:
        """What the model at `source` needs, and the engine that it runs on, or why it cannot."""
        return await self._inspect(node_messages.inspect_request(source, config))

    async def inspect_adapter(self, source: str, dtype: str, base: Deployment) -> Inspected:
        """What the adapter at `source` is, or why it cannot be served over its base."""
        return await self._inspect(node_messages.inspect_adapter_request(source, dtype, base))

    async def _inspect(self, request: pb.InspectSourceRequest) -> Inspected:
        with self.typed_errors():
            response = await self._node.InspectSource(
                request, timeout=_INSPECT_SECONDS, metadata=self._orders()
            )
        return node_messages.inspected(response)

    async def ask(
        self, method: grpc.aio.UnaryUnaryMultiCallable[Question, Answer], question: Question
    ) -> Answer:
        """Asks what a model makes of text: `method` is one of `models`."""
        with self.typed_errors():
            return await method(question, timeout=_ASK_SECONDS, metadata=self._orders())

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
                metadata = rpc.order_metadata(self._authority.term(), trace)
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
        tensor_parallel: int = 1,
        givers: Givers | None = None,
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
            tensor_parallel=tensor_parallel,
            peers=node_messages.peers_message(givers),
        )
        if hold:
            request.hold_id = hold.hold_id
        if hold and hold.ttl is not None:
            request.hold_ttl.CopyFrom(common.duration(hold.ttl))
        with self.typed_errors():
            call = self._node.Promote(request, timeout=timeout, metadata=self._orders())
            async for response in call:
                if response.HasField("done"):
                    yield deployments.model_info(response.done.model)
                else:
                    yield common.loading(response.loading)

    async def release_hold(self, hold_id: str) -> None:
        """Lets a checkpoint be evicted that was held; an unknown hold is no error."""
        request = pb.ReleaseHoldRequest(hold_id=hold_id)
        with self.typed_errors():
            await self._node.ReleaseHold(request, timeout=_RELEASE_SECONDS, metadata=self._orders())

    async def evict(self, digest: str, tier: Tier) -> None:
        """Frees a checkpoint's room on a tier, unless it is in use there."""
        request = pb.EvictRequest(digest=digest, tier=types_pb.Tier.ValueType(tier))
        with self.typed_errors():
            await self._node.Evict(request, timeout=_RELEASE_SECONDS, metadata=self._orders())

    async def start_instance(
        self,
        deployment: Deployment,
        instance: Instance,
        timeout: float,
        helpers: Helpers = NO_HELPERS,
    ) -> AsyncGenerator[Loading | Ready, None]:
        """Starts an instance or joins its start; yields progress, then what is ready."""
        request = node_messages.start_request(deployment, instance, helpers)
        call = self._node.StartInstance(request, timeout=timeout, metadata=self._orders())
        with self.typed_errors():
            async for response in call:
                yield node_messages.step(response, self.node_id)

    async def stop_instance(self, instance_id: str, order: node_messages.StopOrder) -> None:
        """Returns when the instance is gone."""
        request = node_messages.stop_request(instance_id, order)
        with self.typed_errors():
            await self._node.StopInstance(
                request, timeout=order.grace + _STOP_SECONDS, metadata=self._orders()
            )

    async def migrate(
        self,
        ask: MigrationAsk,
        request_ids: Sequence[str],
        to: "Node",
        into: Instance,
    ) -> AsyncGenerator[News, None]:
        """Moves generations of an instance to one of another node."""
        request = pb.StartMigrationRequest(
            instance_id=ask.source.instance_id,
            request_ids=request_ids,
            to_node_id=to.node_id,
            to_address=to.address,
            to_instance_id=into.instance_id,
            reason=inference_pb.MigrationReason.ValueType(ask.reason),
            way=types_pb.MoveWay.ValueType(ask.way or 0),
        )
        metadata = self._orders()
        call = self._node.StartMigration(request, timeout=_MIGRATION_SECONDS, metadata=metadata)
        try:
            with self.typed_errors():
                async for response in call:
                    yield node_messages.migration_news(response)
        finally:
            call.cancel()

    async def cancel(self, request_id: str, attempt: str | None = None) -> None:
        """Ends a generation, also one that lingers; one that is not there has ended.

        `attempt`: that alone is to end. None: whichever reads it.
        """
        request = inference_pb.CancelRequest(request_id=request_id, attempt=attempt)
        with suppress(errors.RequestNotFound), self.typed_errors():
            await self._inference.Cancel(request, timeout=_CANCEL_SECONDS, metadata=self._orders())

    def generate(
        self,
        request: inference_pb.GenerateRequest,
        timeout: float | None,
        trace: Mapping[str, str],
        carriage: Carriage | None = None,
    ) -> GenerateCall:
        """Begins a request on an instance, or has it begun; see `Multiplex.begin`."""
        term = self._authority.term() if carriage and not self._lost else None
        if carriage is None or term is None:
            return self._multiplex.begin(request, timeout, trace)
        self._carriages.add(carriage)
        told = self.typed_errors
        return carriage.begin(self.node_id, self.address, term, request, timeout, trace, told)

    async def close(self) -> None:
        """Ends every call that is under way with NodeLost."""
        self._lost = True
        for carriage in list(self._carriages):
            carriage.recall(self.address)
        await self._channel.close(grace=None)
        await self._multiplex.close()

    def _gone(self, why: str) -> errors.NodeLost:
        return errors.NodeLost(
            f"node {self.node_id} is lost: {why}; try again",
            metadata={"node_id": self.node_id},
            retry_after=1.0,
        )
