"""What this node's models make of text: each question goes to a worker that has its tokenizer."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import grpc
from serverlessllm.v1 import model_service_pb2 as pb
from serverlessllm.v1.model_service_pb2_grpc import ModelServiceServicer

from sllm import errors
from sllm.node.instances.spec import EngineSpec
from sllm.node.instances.text_workers import TextSource, TextWorkers
from sllm.node.worker.backends.names import TRANSFORMERS

if TYPE_CHECKING:
    from serverlessllm.v1.model_service_pb2_grpc import ModelServiceAsyncStub


class _Question(Protocol):
    @property
    def model(self) -> pb.ModelSource: ...

    def ByteSize(self) -> int: ...


Question = TypeVar("Question", bound=_Question)
Answer = TypeVar("Answer")
Method = Callable[["ModelServiceAsyncStub"], grpc.aio.UnaryUnaryMultiCallable[Question, Answer]]
"""Chooses what is asked."""


class ModelServicer(ModelServiceServicer):
    """See model_service.proto. Questions and answers pass through as they are."""

    def __init__(self, text_workers: TextWorkers) -> None:
        self._text_workers = text_workers

    async def GetModel(self, request: pb.GetModelRequest, context: Any) -> pb.GetModelResponse:
        """Tells what a model knows of text."""
        return await self._ask(request, lambda models: models.GetModel)

    async def Tokenize(self, request: pb.TokenizeRequest, context: Any) -> pb.TokenizeResponse:
        """Makes tokens of a text or a conversation."""
        return await self._ask(request, lambda models: models.Tokenize)

    async def CountTokens(
        self, request: pb.CountTokensRequest, context: Any
    ) -> pb.CountTokensResponse:
        """Counts them."""
        return await self._ask(request, lambda models: models.CountTokens)

    async def Detokenize(
        self, request: pb.DetokenizeRequest, context: Any
    ) -> pb.DetokenizeResponse:
        """Makes a text of tokens."""
        return await self._ask(request, lambda models: models.Detokenize)

    async def RenderChat(
        self, request: pb.RenderChatRequest, context: Any
    ) -> pb.RenderChatResponse:
        """Writes a conversation as a model's template has it."""
        return await self._ask(request, lambda models: models.RenderChat)

    async def _ask(self, request: Question, method: Method[Question, Answer]) -> Answer:
        async with self._text_workers.of(_source(request.model), request.ByteSize()) as worker:
            return await worker.ask(method(worker.models), request)


def _source(model: pb.ModelSource) -> TextSource:
    if not model.source:
        raise errors.InvalidArgument("the question names no source; ask a control plane instead")
    engine = EngineSpec(
        engine=model.engine or TRANSFORMERS,
        dtype=model.dtype or None,
        kv_cache_tokens=None,
        max_concurrency=None,
    )
    return TextSource(model.source, engine, model.identity)
