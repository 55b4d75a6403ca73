"""What is made of whole texts, for whoever has the agent's socket: parse, call, translate."""

import asyncio
from typing import Any

from serverlessllm.v1 import embedding_service_pb2 as pb
from serverlessllm.v1.embedding_service_pb2_grpc import EmbeddingServiceServicer

from sllm.embedding import wire
from sllm.node.worker.host import ModelHost


class EmbeddingServicer(EmbeddingServiceServicer):
    """See embedding_service.proto; answers once the worker is attached."""

    def __init__(self, host: ModelHost) -> None:
        self._host = host

    async def Embed(self, request: pb.EmbedRequest, context: Any) -> pb.EmbedResponse:
        """Makes vectors of texts."""
        answers = await self._host.running.encodings.embed(wire.embed_ask(request))
        return await asyncio.to_thread(wire.embed_response, answers)  # of millions of numbers

    async def Score(self, request: pb.ScoreRequest, context: Any) -> pb.ScoreResponse:
        """Scores documents."""
        return wire.score_response(
            await self._host.running.encodings.score(wire.score_ask(request))
        )
