"""Token streams of this node's instances."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from serverlessllm.v1 import inference_service_pb2 as pb
from serverlessllm.v1.inference_service_pb2_grpc import InferenceServiceServicer

from sllm.node.generations.generations import Generations


class InferenceServicer(InferenceServiceServicer):
    """Requests one by one, for whoever calls a node by itself; see inference_service.proto.

    The control plane's router has its calls of Generate in `NodeServicer.Multiplex`.
    """

    def __init__(self, generations: Generations) -> None:
        self._generations = generations

    async def Generate(
        self, request: pb.GenerateRequest, context: Any
    ) -> AsyncIterator[pb.GenerateResponse]:
        """Runs a request on the instance that the router chose, or reads on in one."""
        async with aclosing(self._generations.read(request)) as events:
            async for event in events:
                yield event

    async def Cancel(self, request: pb.CancelRequest, context: Any) -> pb.CancelResponse:
        """Ends a request from outside its stream."""
        attempt = request.attempt if request.HasField("attempt") else None
        self._generations.cancel(request.request_id, attempt)
        return pb.CancelResponse()
