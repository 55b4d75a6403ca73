"""What is asked of a worker's model without its weights: parse, call, translate."""

from typing import Any

from serverlessllm.v1 import model_service_pb2 as pb
from serverlessllm.v1.model_service_pb2_grpc import ModelServiceServicer

from sllm import bounds
from sllm.chat.conversation import MAX_TOOLS
from sllm.chat.wire import conversation
from sllm.errors import InvalidPrompt
from sllm.node.worker.host import ModelHost
from sllm.node.worker.model.prompts import Prompt, TextPrompt
from sllm.node.worker.model.texts import MAX_LETTERS, TextModel

_LIMITS = pb.RequestLimits(
    max_stop=bounds.MAX_STOPS,
    max_logprobs=bounds.MAX_LOGPROBS,
    max_tools=MAX_TOOLS,
    max_letters=MAX_LETTERS,
)


class ModelServicer(ModelServiceServicer):
    """See model_service.proto; answers once the worker has prepared."""

    def __init__(self, host: ModelHost) -> None:
        self._host = host

    async def GetModel(self, request: pb.GetModelRequest, context: Any) -> pb.GetModelResponse:
        """Tells what the model knows of text."""
        model = await self._host.texts.model(request.chat_template)
        return _message(model, self._host.description.dtype)

    async def Tokenize(self, request: pb.TokenizeRequest, context: Any) -> pb.TokenizeResponse:
        """Makes tokens of a text or a conversation."""
        return pb.TokenizeResponse(token_ids=await self._tokens(request))

    async def CountTokens(
        self, request: pb.CountTokensRequest, context: Any
    ) -> pb.CountTokensResponse:
        """Counts them."""
        return pb.CountTokensResponse(tokens=len(await self._tokens(request)))

    async def Detokenize(
        self, request: pb.DetokenizeRequest, context: Any
    ) -> pb.DetokenizeResponse:
        """Makes a text of tokens."""
        skip = request.skip_special_tokens if request.HasField("skip_special_tokens") else True
        text = await self._host.texts.text(request.token_ids, skip_special_tokens=skip)
        texts = await self._host.texts.each(request.token_ids) if request.each else ()
        return pb.DetokenizeResponse(text=text, texts=texts)

    async def RenderChat(
        self, request: pb.RenderChatRequest, context: Any
    ) -> pb.RenderChatResponse:
        """Writes a conversation as the model's template has it."""
        text = await self._host.texts.chat(conversation(request.messages))
        return pb.RenderChatResponse(text=text)

    async def _tokens(self, request: pb.TokenizeRequest | pb.CountTokensRequest) -> tuple[int, ...]:
        add = request.add_special_tokens if request.HasField("add_special_tokens") else True
        return await self._host.texts.tokens(_prompt(request), add_special_tokens=add)


def _prompt(request: pb.TokenizeRequest | pb.CountTokensRequest) -> Prompt:
    match request.WhichOneof("prompt"):
        case "text":
            return TextPrompt(request.text)
        case "messages":
            return conversation(request.messages)
        case _:
            raise InvalidPrompt("there is nothing to make tokens of; set text or messages")


def _message(model: TextModel, dtype: str) -> pb.GetModelResponse:
    return pb.GetModelResponse(
        vocabulary_size=model.vocabulary_size,
        dtype=dtype,
        special_tokens=[
            pb.SpecialToken(token_id=one.token_id, text=one.text, roles=one.roles)
            for one in model.special_tokens
        ],
        stop_token_ids=model.stop_token_ids,
        chat_template=model.chat_template,
        takes_tools=model.takes_tools,
        limits=_LIMITS,
    )
