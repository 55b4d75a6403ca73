"""ModelService: what deployments' models make of text."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import grpc
from serverlessllm.v1 import model_service_pb2 as pb
from serverlessllm.v1.model_service_pb2_grpc import ModelServiceServicer

from sllm.control.control_plane import ControlPlane
from sllm.control.wire import deployments
from sllm.control.wire.chats import take_template

if TYPE_CHECKING:
    from serverlessllm.v1.model_service_pb2_grpc import ModelServiceAsyncStub


class _Question(Protocol):
    @property
    def deployment(self) -> str: ...

    @property
    def model(self) -> pb.ModelSource: ...


Question = TypeVar("Question", bound=_Question)
OfPrompt = TypeVar("OfPrompt", pb.TokenizeRequest, pb.CountTokensRequest, pb.RenderChatRequest)
Answer = TypeVar("Answer")
Method = Callable[["ModelServiceAsyncStub"], grpc.aio.UnaryUnaryMultiCallable[Question, Answer]]
"""Chooses what is asked."""


class ModelServicer(ModelServiceServicer):
    """Questions and answers pass through; what a deployment is and has is added here."""

    def __init__(self, plane: ControlPlane) -> None:
        self._questions = plane.text_questions

    async def GetModel(self, request: pb.GetModelRequest, context: Any) -> pb.GetModelResponse:
        """Tells what there is to know of a deployment's model."""
        deployment = self._questions.deployment(request.deployment)
        request.chat_template = deployment.spec.chat_template
        model = await self._ask(request, lambda models: models.GetModel)
        named = self._questions.named(request.deployment)
        model.info.CopyFrom(deployments.model_message(named.model))
        model.base = named.spec.base
        model.own_chat_template = bool(deployment.spec.chat_template)
        model.engine = deployment.spec.engine.engine
        model.context_tokens = deployment.context_tokens
        return model

    async def Tokenize(self, request: pb.TokenizeRequest, context: Any) -> pb.TokenizeResponse:
        """Makes tokens of a text or a conversation."""
        return await self._ask_of_prompt(request, lambda models: models.Tokenize)

    async def CountTokens(
        self, request: pb.CountTokensRequest, context: Any
    ) -> pb.CountTokensResponse:
        """Counts them, and tells how many there may be."""
        counted = await self._ask_of_prompt(request, lambda models: models.CountTokens)
        counted.context_tokens = self._questions.deployment(request.deployment).context_tokens
        return counted

    async def Detokenize(
        self, request: pb.DetokenizeRequest, context: Any
    ) -> pb.DetokenizeResponse:
        """Makes a text of tokens."""
        return await self._ask(request, lambda models: models.Detokenize)

    async def RenderChat(
        self, request: pb.RenderChatRequest, context: Any
    ) -> pb.RenderChatResponse:
        """Writes a conversation as a model's template has it."""
        return await self._ask_of_prompt(request, lambda models: models.RenderChat)

    async def _ask_of_prompt(self, request: OfPrompt, method: Method[OfPrompt, Answer]) -> Answer:
        take_template(request, self._questions.deployment(request.deployment))
        return await self._ask(request, method)

    async def _ask(self, request: Question, method: Method[Question, Answer]) -> Answer:
        deployment = self._questions.deployment(request.deployment)
        source = deployments.model_source(deployment.spec, deployment.model)
        request.model.CopyFrom(source)
        return await self._questions.ask(
            deployment, lambda node: node.ask(method(node.models), request)
        )
