"""ReplicaService: what those that follow ask of the control plane that leads."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, Final

import grpc
from serverlessllm.v1 import inference_service_pb2 as inference_pb
from serverlessllm.v1 import replica_service_pb2 as pb
from serverlessllm.v1.replica_service_pb2_grpc import ReplicaServiceServicer

from sllm import errors
from sllm.control.replicas.handlers import Handlers, answers
from sllm.control.wire import carriage
from sllm.control.wire.carriage import Carriage

_GENERATE: Final = "/serverlessllm.v1.InferenceService/Generate"
_AHEAD: Final = 16
"""Events that wait for whoever reads a stream."""


class Call(grpc.HandlerCallDetails):
    """A call, as what stands before handlers looks at it."""

    def __init__(self, method: str, metadata: Any) -> None:
        self.method = method
        self.invocation_metadata = metadata


class ReplicaServicer(ReplicaServiceServicer):
    """Answers as the leader, by its handlers: each call passes what stands before them."""

    def __init__(self, own: Handlers) -> None:
        self._own = own

    async def Carry(
        self, requests: AsyncIterator[pb.CarryRequest], context: Any
    ) -> AsyncIterator[pb.CarryResponse]:
        """Serves a generation whose tokens whoever calls carries."""
        begin = await _begun(requests)
        async with aclosing(_Stream(begin, self._events(begin, context)).run(requests)) as told:
            async for response in told:
                yield response

    async def _events(
        self, begin: pb.CarryBegin, context: Any
    ) -> AsyncGenerator[inference_pb.GenerateResponse]:
        """What the request's caller would be answered here."""
        call = Call(_GENERATE, context.invocation_metadata())
        handler = self._own.find(call)
        assert handler is not None
        asked = _only(begin.request.SerializeToString())
        async with aclosing(answers(handler, asked, context)) as events:
            async for encoded in events:
                yield inference_pb.GenerateResponse.FromString(encoded)


class _Stream:
    """One call of Carry."""

    def __init__(
        self, begin: pb.CarryBegin, events: AsyncGenerator[inference_pb.GenerateResponse]
    ) -> None:
        """`events` are what a caller of this control plane would be answered."""
        self._told: asyncio.Queue[pb.CarryResponse | None] = asyncio.Queue()
        self._room = asyncio.Semaphore(_AHEAD)
        self._carriage = Carriage(self._told.put_nowait, begin.instance_id)
        self._events = events

    async def run(
        self, requests: AsyncIterator[pb.CarryRequest]
    ) -> AsyncGenerator[pb.CarryResponse]:
        """What whoever carries it is told."""
        generating = asyncio.create_task(self._generate(), name="a carried generation")
        taking = asyncio.create_task(self._take(requests), name="what has come of it")
        try:
            while (response := await self._told.get()) is not None:
                yield response
                if response.HasField("event"):
                    self._room.release()
            await (taking if taking.done() and not generating.done() else generating)
        finally:
            for task in (generating, taking):
                task.cancel()
            await asyncio.gather(generating, taking, return_exceptions=True)

    async def _generate(self) -> None:
        carriage.enter(self._carriage)
        try:
            async with aclosing(self._events) as events:
                async for event in events:
                    if self._carriage.passes(event):
                        await self._room.acquire()
                        self._told.put_nowait(pb.CarryResponse(event=event))
        finally:
            self._told.put_nowait(None)

    async def _take(self, requests: AsyncIterator[pb.CarryRequest]) -> None:
        try:
            async for request in requests:
                self._carriage.take(request.output)
        except Exception:  # without what comes of it the generation would never end here
            self._told.put_nowait(None)
            raise


async def _begun(requests: AsyncIterator[pb.CarryRequest]) -> pb.CarryBegin:
    first = await anext(requests, pb.CarryRequest())
    if not first.HasField("begin"):
        raise errors.InvalidArgument("the first message of Carry is begin")
    if first.begin.request.n > 1 or first.begin.request.choices:
        raise errors.InvalidArgument("a request of several samples is passed on, not carried")
    return first.begin


async def _only(request: bytes) -> AsyncIterator[bytes]:
    yield request
