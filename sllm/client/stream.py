"""The stream of one generation."""

import asyncio
import time
import weakref
from types import TracebackType
from typing import Final, Self

import grpc
from serverlessllm.v1 import inference_service_pb2 as pb

from sllm import errors
from sllm.client.connection import Connection, bounded, task_is_cancelled
from sllm.client.transcript import Transcript
from sllm.client.types.events import Event, Result
from sllm.client.wire import events, requests

Call = grpc.aio.UnaryStreamCall[pb.GenerateRequest, pb.GenerateResponse]

_BROKEN = (errors.Unreachable, errors.ShuttingDown, errors.NotLeader, errors.NoLeader)
"""Errors that a stream breaks off with when the control plane goes and the generation does not.

To read on may be refused as well, by the limit of a tenant who calls so fast that nothing is read.
"""
_RETRY_SECONDS: Final = 0.2


class ResumableCall:
    """A request, and the call that it is made with: another one after each that breaks off."""

    def __init__(
        self, request: pb.GenerateRequest, connection: Connection, timeout: float | None
    ) -> None:
        self.request = request
        self.connection = connection
        seconds = bounded(timeout)
        self._deadline = None if seconds is None else time.monotonic() + seconds
        self.current = self._open()

    def resume(self, transcript: Transcript) -> None:
        """Calls again, for what comes after what there is."""
        self.current.cancel()
        sequence, told = transcript.next_sequence, transcript.prompt_logprobs
        requests.resume(self.request, sequence, transcript.token_ids, told)
        self.current = self._open()

    def _open(self) -> Call:
        deadline = self._deadline
        remaining = None if deadline is None else max(0.0, deadline - time.monotonic())
        return self.connection.inference.Generate(
            self.request, timeout=remaining, metadata=self.connection.metadata()
        )


class AsyncStream:
    """The events of a generation, as they come: `async for event in stream`.

    The generation goes on for as long as the stream is there. To leave it early, `cancel()` it,
    use it as a context manager, or drop it. If the control plane is lost meanwhile, the stream
    reads on once that is back.

    Example:
        async with client.generate("tiny", "Once upon a time", max_tokens=32) as stream:
            async for event in stream:
                if isinstance(event, sllm.Tokens):
                    print(event.text, end="", flush=True)
            result = await stream.result()
            print(result.finish_reason)
    """

    def __init__(self, call: ResumableCall, *, wants_logprobs: bool, reattach: float) -> None:
        """`reattach`: seconds for which a control plane that is lost is waited for."""
        self.request_id = call.request.request_id
        """Id by which the request can be cancelled from anywhere."""
        self._call = call
        self._reattach = reattach
        self._transcript = Transcript(
            self.request_id,
            wants_logprobs=wants_logprobs,
            wants_prompt=call.request.HasField("prompt_logprobs"),
            n=max(1, call.request.n),  # whatever it is, it is for the control plane to judge
        )
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
            message = await self._read_resuming()
            if message is None:
                return None
            self._transcript.expect(message.sequence)
            event = events.event(message)
            requests.settle(self._call.request, message)
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
        self._call.current.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.cancel()

    async def _read_resuming(self) -> pb.GenerateResponse | None:
        """The next message, over as many calls as it takes."""
        patience: float | None = None
        elsewhere = len(self._call.connection.addresses)
        while True:
            try:
                return await self._read()
            except (*_BROKEN, errors.TenantLimit) as error:
                now = time.monotonic()
                patience = now + self._reattach if patience is None else patience
                # Before its first message nobody is known to have the request: each control plane
                # is asked once, and then the caller is told, who may know others.
                elsewhere -= 1
                others = elsewhere > 0 and isinstance(error, _BROKEN)
                if now >= patience or not (self._transcript.next_sequence or others):
                    raise
                pause = max(_RETRY_SECONDS, error.retry_after or 0.0)
            await asyncio.sleep(min(pause, patience - now))
            if self._cancelled:  # while this slept: another call would revive what was ended
                raise self._was_cancelled()
            self._call.resume(self._transcript)

    async def _read(self) -> pb.GenerateResponse | None:
        try:
            with self._call.connection.typed_errors():
                message = await self._call.current.read()
        except asyncio.CancelledError as error:
            # gRPC says CancelledError for a call that was cancelled as for a task that was.
            if not self._cancelled or task_is_cancelled():
                raise
            raise self._was_cancelled() from error
        return message if isinstance(message, pb.GenerateResponse) else None

    def _was_cancelled(self) -> errors.Cancelled:
        return errors.Cancelled(f"request {self.request_id} was cancelled here")


def _cancel_in_loop(loop: asyncio.AbstractEventLoop, call: ResumableCall) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(lambda: call.current.cancel())
