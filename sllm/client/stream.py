"""The stream of one generation."""

import asyncio
import weakref
from types import TracebackType
from typing import Self

import grpc
from serverlessllm.v1 import inference_service_pb2 as pb

from sllm import errors
from sllm.client import responses
from sllm.client.connection import Connection
from sllm.client.events import Event, Result
from sllm.client.transcript import Transcript

Call = grpc.aio.UnaryStreamCall[pb.GenerateRequest, pb.GenerateResponse]


class AsyncStream:
    """The events of a generation, as they come: `async for event in stream`.

    The generation goes on for as long as the stream is there. To leave it early, `cancel()` it,
    use it as a context manager, or drop it.
    """

    def __init__(
        self, call: Call, connection: Connection, request_id: str, *, wants_logprobs: bool
    ) -> None:
        self.request_id = request_id
        """Id by which the request can be cancelled from anywhere."""
        self._call = call
        self._connection = connection
        self._transcript = Transcript(request_id, wants_logprobs=wants_logprobs)
        self._cancelled = False
        loop = asyncio.get_running_loop()
        # A stream may be dropped in any thread; its call belongs to the loop's.
        weakref.finalize(self, _cancel_in_loop, loop, call).atexit = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        event = await self.receive()
        if event is None:
            raise StopAsyncIteration
        return event

    async def receive(self) -> Event | None:
        """The next event; None after the last.

        Raises:
            errors.SllmError: The generation failed, or was cancelled.
        """
        while True:
            message = await self._read()
            if message is None:
                return None
            self._transcript.expect(message.sequence)
            event = responses.event(message)
            if event is not None:
                self._transcript.add(event)
                return event

    async def result(self) -> Result:
        """Waits for the end of the stream and returns the whole generation.

        Raises:
            errors.SllmError: The generation failed, or was cancelled.
        """
        async for _ in self:
            pass
        return self._transcript.result()

    async def cancel(self) -> None:
        """Ends the generation. Whoever still reads the stream gets `errors.Cancelled`."""
        self._cancelled = True
        self._call.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.cancel()

    async def _read(self) -> pb.GenerateResponse | None:
        try:
            with self._connection.typed_errors():
                message = await self._call.read()
        except asyncio.CancelledError:
            if not self._cancelled or _task_is_cancelled():
                raise
            raise errors.Cancelled(f"request {self.request_id} was cancelled here") from None
        return message if isinstance(message, pb.GenerateResponse) else None


def _task_is_cancelled() -> bool:
    """Whether it is the reading task that was cancelled, and not only the stream that it reads."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _cancel_in_loop(loop: asyncio.AbstractEventLoop, call: Call) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(call.cancel)
