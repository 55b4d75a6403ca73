"""InferenceService: token streams."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from serverlessllm.v1 import inference_service_pb2 as pb
from serverlessllm.v1.inference_service_pb2_grpc import InferenceServiceServicer

from sllm.control.control_plane import ControlPlane
from sllm.control.wire import generations


class InferenceServicer(InferenceServiceServicer):
    """Messages pass through as they are: a token is never translated."""

    def __init__(self, plane: ControlPlane) -> None:
        self._streams = plane.streams

    async def Generate(
        self, request: pb.GenerateRequest, context: Any
    ) -> AsyncIterator[pb.GenerateResponse]:
        """Serves a request from its queueing to its end."""
        stream = await self._streams.open(request, context.time_remaining())
        # A caller may leave while nothing here is running: this stops the node all the same.
        context.add_done_callback(lambda _: stream.drop())
        async with aclosing(stream.events()) as events:
            async for event in events:
                yield event

    async def Cancel(self, request: pb.CancelRequest, context: Any) -> pb.CancelResponse:
        """Ends a request from outside its stream."""
        await self._streams.cancel(request.request_id, generations.attempt(request))
        return pb.CancelResponse()
