"""The node's end of a stream of many calls of Generate."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Final

from opentelemetry import context as otel_context
from opentelemetry import propagate
from serverlessllm.v1 import inference_service_pb2 as inference_pb
from serverlessllm.v1 import node_service_pb2 as pb

from sllm import errors, handlers
from sllm.durations import to_seconds
from sllm.statuses import to_failure

Read = Callable[[inference_pb.GenerateRequest], AsyncGenerator[inference_pb.GenerateResponse]]

_MAX_STEP_BYTES: Final = 1024 * 1024
"""Of one message, unless a single output has more."""


class Multiplexer:
    """Serves the calls of one stream. Belongs to the event loop.

    What its calls give while a message is being sent leaves with the next one. A call is over when
    its last output has been sent: who looks whether a request is read still finds it so.
    """

    def __init__(self, read: Read) -> None:
        """`read` gives the events of one request."""
        self._read = read
        self._calls: dict[int, asyncio.Task[None]] = {}
        self._waiting: deque[_Message] = deque()
        self._changed = asyncio.Event()
        self._error: errors.SllmError | None = None

    def end(self, error: errors.SllmError) -> None:
        """Ends all calls, as if their reader had left, and has the stream end with `error`."""
        self._error = error
        self._changed.set()

    async def follow(
        self, commands: AsyncIterator[pb.MultiplexRequest]
    ) -> AsyncGenerator[pb.MultiplexResponse]:
        """What calls give, until no more are begun and all have ended, or the reader leaves.

        Raises:
            errors.InvalidArgument: A command makes no sense; it has ended all calls.
            errors.SllmError: What `end` was told.
        """
        taking = asyncio.create_task(self._take_all(commands), name="multiplexed calls")
        taking.add_done_callback(lambda _: self._changed.set())
        try:
            while await self._something_waits(taking):
                if self._error:
                    raise self._error
                message = self._waiting.popleft()
                yield message.response
                message.sent.set()
            await taking
        finally:
            tasks = [taking, *self._calls.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _something_waits(self, taking: asyncio.Task[None]) -> bool:
        while not (self._waiting or self._error):
            if taking.done() and (taking.exception() or not self._calls):
                return False
            self._changed.clear()
            await self._changed.wait()
        return True

    async def _take_all(self, commands: AsyncIterator[pb.MultiplexRequest]) -> None:
        async for command in commands:
            match command.WhichOneof("command"):
                case "begin":
                    self._begin(command.begin)
                case "hang_up":
                    self._hang_up(command.hang_up)
                case None:
                    raise errors.InvalidArgument("the command is empty: begin a call, or hang up")

    def _begin(self, call: pb.CallBegin) -> None:
        if call.number in self._calls:
            raise errors.InvalidArgument(f"call {call.number} is under way: count on")
        serving = asyncio.create_task(self._serve(call), name="multiplexed call")
        self._calls[call.number] = serving
        serving.add_done_callback(lambda _: self._ended(call.number))

    def _ended(self, number: int) -> None:
        del self._calls[number]
        self._changed.set()

    def _hang_up(self, number: int) -> None:
        if call := self._calls.get(number):
            call.cancel()

    async def _serve(self, call: pb.CallBegin) -> None:
        # Never detached: the task has a context of its own.
        otel_context.attach(propagate.extract(dict(call.trace)))
        try:
            await self._pass_on(call)
        except Exception as error:
            failure = to_failure(handlers.as_typed(error, "Generate"))
            await self._put(pb.CallOutput(number=call.number, failure=failure)).wait()

    async def _pass_on(self, call: pb.CallBegin) -> None:
        seconds = to_seconds(call.timeout) if call.HasField("timeout") else None
        try:
            async with (
                asyncio.timeout(seconds),
                aclosing(self._read(call.request)) as events,
            ):
                async for event in events:
                    sent = self._put(pb.CallOutput(number=call.number, event=event))
                    if event.WhichOneof("event") in ("finished", "moved"):
                        await sent.wait()
        except TimeoutError as error:
            raise errors.DeadlineExceeded("the call's deadline has passed") from error

    def _put(self, output: pb.CallOutput) -> asyncio.Event:
        """Adds an output; gives what is set once it has been sent."""
        size = output.ByteSize()
        if not self._waiting or self._waiting[-1].size_bytes + size > _MAX_STEP_BYTES:
            self._waiting.append(_Message())
        message = self._waiting[-1]
        message.response.outputs.append(output)
        message.size_bytes += size
        self._changed.set()
        return message.sent


@dataclass(slots=True)
class _Message:
    """What waits to be sent together."""

    response: pb.MultiplexResponse = field(default_factory=pb.MultiplexResponse)
    size_bytes: int = 0
    sent: asyncio.Event = field(default_factory=asyncio.Event)
