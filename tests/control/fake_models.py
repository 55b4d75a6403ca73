"""What a fake node makes of text: a token for each letter."""

from typing import Any

from google.protobuf.message import Message
from serverlessllm.v1 import model_service_pb2 as pb
from serverlessllm.v1.model_service_pb2_grpc import ModelServiceServicer

from tests.control.script import Script


class FakeModels(ModelServiceServicer):
    """The part of a `FakeNode` that is asked about text."""

    script: Script
    calls: list[Message]

    def _take(self, request: Message) -> None:
        self.calls.append(request)
        if self.script.text_error:
            raise self.script.text_error

    async def GetModel(self, request: pb.GetModelRequest, context: Any) -> pb.GetModelResponse:
        self._take(request)
        return pb.GetModelResponse(vocabulary_size=0x110000)

    async def Tokenize(self, request: pb.TokenizeRequest, context: Any) -> pb.TokenizeResponse:
        self._take(request)
        return pb.TokenizeResponse(token_ids=map(ord, request.text))

    async def CountTokens(
        self, request: pb.CountTokensRequest, context: Any
    ) -> pb.CountTokensResponse:
        self._take(request)
        return pb.CountTokensResponse(tokens=len(request.text))

    async def Detokenize(
        self, request: pb.DetokenizeRequest, context: Any
    ) -> pb.DetokenizeResponse:
        self._take(request)
        return pb.DetokenizeResponse(text="".join(map(chr, request.token_ids)))

    async def RenderChat(
        self, request: pb.RenderChatRequest, context: Any
    ) -> pb.RenderChatResponse:
        self._take(request)
        return pb.RenderChatResponse(text="".join(one.content for one in request.messages.messages))
