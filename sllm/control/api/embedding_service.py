"""EmbeddingService: vectors and scores."""

from typing import Any

from serverlessllm.v1 import embedding_service_pb2 as pb
from serverlessllm.v1.embedding_service_pb2_grpc import EmbeddingServiceServicer

from sllm.control.control_plane import ControlPlane


class EmbeddingServicer(EmbeddingServiceServicer):
    """Messages pass through as they are; the receipt is added."""

    def __init__(self, plane: ControlPlane) -> None:
        self._encodings = plane.encodings

    async def Embed(self, request: pb.EmbedRequest, context: Any) -> pb.EmbedResponse:
        """Has an instance make vectors of texts."""
        remaining = context.time_remaining()
        return await self._encodings.serve(request, remaining, lambda encoders: encoders.Embed)

    async def Score(self, request: pb.ScoreRequest, context: Any) -> pb.ScoreResponse:
        """Has an instance score documents."""
        remaining = context.time_remaining()
        return await self._encodings.serve(request, remaining, lambda encoders: encoders.Score)
