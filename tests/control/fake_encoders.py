"""Vectors and scores of a fake node: of each text, its length."""

from typing import Any

from google.protobuf.message import Message
from serverlessllm.v1 import embedding_service_pb2 as pb
from serverlessllm.v1 import types_pb2
from serverlessllm.v1.embedding_service_pb2_grpc import EmbeddingServiceServicer

from sllm import errors
from tests.control.script import Script


class FakeEncoders(EmbeddingServiceServicer):
    """The part of a `FakeNode` whose instances embed and score."""

    script: Script
    calls: list[Message]
    cancelled: list[str]
    instances: dict[str, types_pb2.Instance]

    async def Embed(self, request: pb.EmbedRequest, context: Any) -> pb.EmbedResponse:
        await self._serve(request)
        vectors = [pb.Embedding(values=[len(one.text), 1.0]) for one in request.inputs]
        return pb.EmbedResponse(embeddings=vectors)

    async def Score(self, request: pb.ScoreRequest, context: Any) -> pb.ScoreResponse:
        await self._serve(request)
        return pb.ScoreResponse(scores=[pb.Score(values=[len(one)]) for one in request.documents])

    async def _serve(self, request: pb.EmbedRequest | pb.ScoreRequest) -> None:
        self.calls.append(request)
        instance = self.instances.get(request.instance_id)
        if instance is None or instance.state != types_pb2.INSTANCE_STATE_READY:
            raise errors.InstanceNotFound(f"no ready instance {request.instance_id}")
        instance.running_requests += 1
        answered = False
        try:
            await self.script.before_tokens.passed()
            if self.script.generate_errors:
                raise self.script.generate_errors.pop(0)
            answered = True
        finally:
            instance.running_requests -= 1
            if not answered:
                self.cancelled.append(request.instance_id)
