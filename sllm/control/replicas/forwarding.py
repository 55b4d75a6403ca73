"""Calls that are passed on to the control plane that leads: message by message, as bytes."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, Final

import grpc
from grpc_status import rpc_status

from sllm import errors, rpc, sending, statuses
from sllm.control.election.ballot import Leader
from sllm.control.tasks import Tasks

FORWARDED: Final = rpc.FORWARDED_HEADER
"""Of a call that was passed on once, and is not to be passed on again."""
_OWN_HEADERS: Final = ("grpc-", "user-agent", ":")
"""What the metadata begins with that gRPC makes itself for each call."""
_GONE: Final = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED})


class LeaderGone(Exception):
    """Whoever led did not answer a call to its end, or leads no more."""


class Forwarding:
    """The way to whoever leads. Belongs to the event loop."""

    def __init__(self, dial: rpc.Dial) -> None:
        self._dial = dial
        self._leader: Leader | None = None
        self._channel: grpc.aio.Channel | None = None
        self._tasks = Tasks()

    @property
    def possible(self) -> bool:
        """Whether another control plane leads."""
        return self._channel is not None

    def turn_to(self, leader: Leader | None) -> None:
        """Another one leads; calls that are under way at the former end with LeaderGone."""
        if self._channel:
            closing = self._channel.close(None)
            self._tasks.spawn(closing, name="close the channel of a former leader")
        self._leader = leader
        self._channel = self._dial(leader.address) if leader else None

    async def close(self) -> None:
        """Ends all calls."""
        self.turn_to(None)
        await self._tasks.join()

    async def answers(
        self, path: str, requests: AsyncIterator[bytes], context: Any
    ) -> AsyncGenerator[bytes]:
        """What the leader answers.

        Raises:
            LeaderGone: It does not, or no more.
            grpc.aio.AbortError: It refuses; the caller was told what it said.
        """
        try:
            async with aclosing(self.passed_on(path, requests, context)) as responses:
                async for response in responses:
                    yield response
        except grpc.aio.AioRpcError as error:
            await refuse(error, context)

    async def passed_on(
        self, path: str, requests: AsyncIterator[bytes], context: Any
    ) -> AsyncGenerator[bytes]:
        """The same; the caller is told nothing.

        Raises:
            LeaderGone: It does not, or no more.
            grpc.aio.AioRpcError: It refuses.
        """
        assert self._channel is not None
        method: Any = self._channel.stream_stream(path)
        call = method(timeout=context.time_remaining(), metadata=_metadata(context))
        # The caller may leave while nothing here is running: this stops the leader all the same.
        context.add_done_callback(lambda _: call.cancel())
        writing = asyncio.create_task(_write(call, requests), name=f"forward {path}")
        try:
            async with aclosing(_read(call)) as responses:
                async for response in responses:
                    yield response
        finally:
            call.cancel()
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)


async def refuse(error: grpc.aio.AioRpcError, context: Any) -> None:
    """Ends a caller's call as the leader has ended it."""
    await context.abort_with_status(rpc_status.to_status(_status(error)))


async def _read(call: Any) -> AsyncGenerator[bytes]:
    """Raises LeaderGone for whatever end tells nothing of the call itself."""
    try:
        async for response in call:
            yield response
    except grpc.aio.AioRpcError as error:
        of_leader = isinstance(statuses.from_rpc_error(error), errors.NotLeader)
        lost = statuses.is_of_transport(error) and error.code() in _GONE
        if of_leader or lost:
            raise LeaderGone(error.details() or error.code().name) from error
        raise
    except asyncio.CancelledError as error:
        # gRPC says so for calls of a channel that was closed as for a task that is cancelled.
        task = asyncio.current_task()
        if task and task.cancelling():
            raise
        raise LeaderGone("another control plane leads by now") from error


async def _write(call: Any, requests: AsyncIterator[bytes]) -> None:
    try:
        async for request in requests:
            if not await sending.write(call, request):
                return  # whoever reads is told why
        await call.done_writing()
    except grpc.aio.UsageError:
        return  # the channel was closed meanwhile
    except Exception:
        call.cancel()
        raise


def _status(error: grpc.aio.AioRpcError) -> Any:
    """What was said, word for word; what gRPC itself said as an error of ours."""
    said = None if statuses.is_of_transport(error) else rpc_status.from_call(error)
    return said or statuses.to_status(statuses.from_rpc_error(error))


def _metadata(context: Any) -> grpc.aio.Metadata:
    kept = [
        (key, value)
        for key, value in context.invocation_metadata() or ()
        if not key.startswith(_OWN_HEADERS)
    ]
    return grpc.aio.Metadata(*kept, (FORWARDED, context.peer()))
