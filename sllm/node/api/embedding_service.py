"""Vectors and scores by this node's instances."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import grpc
from serverlessllm.v1 import embedding_service_pb2 as pb
from serverlessllm.v1.embedding_service_pb2_grpc import EmbeddingServiceServicer

from sllm.node.instances.instances import Instances

if TYPE_CHECKING:
    from serverlessllm.v1.embedding_service_pb2_grpc import EmbeddingServiceAsyncStub


class _Question(Protocol):
    @property
    def instance_id(self) -> str: ...


Question = TypeVar("Question", bound=_Question)
Reply = TypeVar("Reply")
Method = Callable[["EmbeddingServiceAsyncStub"], grpc.aio.UnaryUnaryMultiCallable[Question, Reply]]
"""Chooses what is asked."""


class EmbeddingServicer(EmbeddingServiceServicer):
    """See embedding_service.proto. Questions and answers pass through as they are."""

    def __init__(self, instances: Instances) -> None:
        self._instances = instances

    async def Embed(self, request: pb.EmbedRequest, context: Any) -> pb.EmbedResponse:
        """Makes vectors of texts on the instance that the router chose."""
        return await self._encode(request, context, lambda encoders: encoders.Embed)

    async def Score(self, request: pb.ScoreRequest, context: Any) -> pb.ScoreResponse:
        """Scores documents on the instance that the router chose."""
        return await self._encode(request, context, lambda encoders: encoders.Score)

    async def _encode(
        self, request: Question, context: Any, method: Method[Question, Reply]
    ) -> Reply:
        worker = self._instances.find(request.instance_id).ready_worker()
        return await worker.encode(method(worker.encoders), request, context.time_remaining())
