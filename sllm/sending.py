"""Messages that a client sends over a stream, one by one or out of a queue."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import grpc
import structlog
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # compiled, without stubs

from sllm import errors

log = structlog.get_logger()

_STATUS_SECONDS: Final = 5.0
"""Time in which a stream that takes no more messages has to tell how it ended."""


async def write(call: Any, request: Any) -> bool:
    """Sends a message; whether the stream goes on: if not, its reader is told why.

    The ``write`` of grpc.aio itself puts INTERNAL in the place of what the server has ended the
    stream with, if that comes between its first look and the message
    (https://github.com/grpc/grpc/issues/36066).

    Raises:
        errors.Internal: gRPC takes no message, and does not say how the stream ended.
    """
    with suppress(grpc.aio.AioRpcError):
        await call.wait_for_connection()
    if call.done():
        return False
    serialize = call._request_serializer  # None: it is bytes
    try:
        await call._cython_call.send_serialized_message(
            serialize(request) if serialize else request
        )
    except cygrpc.InternalError as error:
        await _ended(call, error)
        return False
    except asyncio.CancelledError:
        call.cancel()  # nobody knows how much of the message has left
        raise
    return True


async def _ended(call: Any, refused: Exception) -> None:
    try:
        await asyncio.wait_for(call.code(), _STATUS_SECONDS)
    except TimeoutError:
        call.cancel()
        raise errors.Internal(f"gRPC took no message, and ended no stream: {refused}") from refused


@asynccontextmanager
async def from_queue(call: Any, requests: "asyncio.Queue[Any]") -> AsyncIterator[None]:
    """Sends over a stream, while the block lasts, what comes in `requests`; None ends it in order.

    gRPC can take an iterator of requests instead, but then leaves behind the task that waits for
    the next one if the stream breaks.
    """
    task = asyncio.create_task(_send(call, requests))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _send(call: Any, requests: "asyncio.Queue[Any]") -> None:
    try:
        while (request := await requests.get()) is not None:
            if not await write(call, request):
                return
        await call.done_writing()
    except Exception:
        log.exception("rpc.request_not_sent")
        call.cancel()
