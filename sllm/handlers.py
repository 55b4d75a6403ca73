"""What every handler of a server here is wrapped in: typed errors, and the trace of its caller."""

import functools
import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import grpc
import structlog
from google.protobuf.message import DecodeError
from grpc_status import rpc_status
from opentelemetry import context as otel_context
from opentelemetry import propagate

from sllm import errors, statuses

log = structlog.get_logger()


async def _abort(context: Any, error: Exception, method: str) -> None:
    if isinstance(error, grpc.aio.InternalError):
        return  # a message was written that had nowhere to go: its caller has just left
    typed = as_typed(error, method)
    # Its frames hold the request, and wait in a cycle for the garbage collector.
    typed.__traceback__ = None
    await context.abort_with_status(rpc_status.to_status(statuses.to_status(typed)))


def as_typed(error: Exception, method: str) -> errors.SllmError:
    """What a caller is told of a failure. One that nobody has foreseen is logged."""
    if isinstance(error, errors.SllmError):
        return error
    log.error("rpc.unexpected_error", method=method, exc_info=error)
    return errors.Internal(f"{method} failed unexpectedly; the server's log tells more")


class ErrorsAndTraces(grpc.aio.ServerInterceptor):
    """Turns exceptions into statuses, and runs each handler within its caller's trace."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wraps the handler of one method; see grpc.aio.ServerInterceptor."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        return with_behaviour(handler, _reading(behaviour_of(handler), handler, method), None)


def behaviour_of(handler: Any) -> Any:
    """The function behind a handler of any kind."""
    return getattr(handler, _kind(handler))


def with_behaviour(handler: Any, behaviour: Any, deserializer: Any) -> Any:
    """A handler of the same kind with another function behind it.

    Args:
        handler: One of gRPC's.
        behaviour: Takes requests as `deserializer` makes them.
        deserializer: The handler's own; None for requests as bytes.
    """
    make: Any = getattr(grpc, f"{_kind(handler)}_rpc_method_handler")
    return make(behaviour, deserializer, handler.response_serializer)


def rewrap(handler: Any, *, answering: Any, streaming: Any) -> Any:
    """A handler whose function is wrapped: by `streaming` if it gives responses one by one."""
    behaviour = behaviour_of(handler)
    wrap = streaming if inspect.isasyncgenfunction(behaviour) else answering
    return with_behaviour(handler, wrap(behaviour), handler.request_deserializer)


def _kind(handler: Any) -> str:
    return f"{_arity(handler.request_streaming)}_{_arity(handler.response_streaming)}"


def _arity(streaming: bool) -> str:
    return "stream" if streaming else "unary"


def _enter_trace(context: Any) -> None:
    metadata = dict(context.invocation_metadata() or ())
    # Never detached: gRPC runs every call in a task, and so in a context, of its own.
    otel_context.attach(propagate.extract(metadata))


def _reading(behaviour: Any, handler: Any, method: str) -> Any:
    """A handler of bytes: what is no message is the caller's error, which gRPC calls UNKNOWN.

    It gives its responses, or writes them itself, as that of health's Watch does.
    """
    read: Callable[[Any], Any] = functools.partial(message_of, handler.request_deserializer)
    if handler.request_streaming:
        read = functools.partial(_Messages, read=read)
    gives = inspect.isasyncgenfunction(behaviour)
    wrap = _wrap_stream if gives else _wrap_unary
    return wrap(behaviour, read, method)


def message_of(deserialize: Callable[[bytes], Any], encoded: bytes) -> Any:
    """A message of a caller.

    Raises:
        errors.InvalidArgument: It is none.
    """
    try:
        return deserialize(encoded)
    except DecodeError as error:
        raise errors.InvalidArgument(
            f"the request is not a message of this call: {error}"
        ) from error


class _Messages:
    """The messages of a caller's stream."""

    def __init__(self, encoded: AsyncIterator[bytes], read: Callable[[bytes], Any]) -> None:
        self._encoded = encoded
        self._read = read

    def __aiter__(self) -> "_Messages":
        return self

    async def __anext__(self) -> Any:
        return self._read(await anext(self._encoded))


def _wrap_unary(
    behaviour: Callable[..., Awaitable[Any]], read: Callable[[Any], Any], method: str
) -> Any:
    @functools.wraps(behaviour)
    async def wrapped(request: Any, context: Any) -> Any:
        _enter_trace(context)
        try:
            answering = behaviour(read(request), context)
            del request  # this frame outlives the call, in the traceback of its end
            return await answering
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            return await _abort(context, error, method)

    return wrapped


def _wrap_stream(
    behaviour: Callable[..., AsyncGenerator[Any]], read: Callable[[Any], Any], method: str
) -> Any:
    """A handler that writes what `behaviour` gives, and closes it in the call's own task.

    gRPC leaves a generator to the garbage collector when its caller has gone.
    """

    @functools.wraps(behaviour)
    async def wrapped(request: Any, context: Any) -> None:
        _enter_trace(context)
        try:
            answering = behaviour(read(request), context)
            del request  # this frame outlives the call, in the traceback of its end
            async with aclosing(answering) as responses:
                async for response in responses:
                    await context.write(response)
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            await _abort(context, error, method)

    return wrapped
