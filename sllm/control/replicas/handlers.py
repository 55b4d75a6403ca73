"""The handlers of servicers, found by the path of a call."""

import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, TypeAlias

import grpc

from sllm.handlers import behaviour_of, message_of

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class Handlers:
    """What servicers add themselves to, in place of a server.

    Each call passes what stands before them, however it has come here: also one that another
    control plane was asked for, and one that came before this one led.
    """

    def __init__(self, doors: Sequence[grpc.aio.ServerInterceptor] = ()) -> None:
        """`doors`: what each call passes, the outermost first."""
        self._doors = doors
        self._generic: list[grpc.GenericRpcHandler] = []

    def add_generic_rpc_handlers(self, handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        """Takes the handlers of a service; see grpc.aio.Server."""
        self._generic += handlers

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Takes the same ones, in another form; see grpc.aio.Server."""

    def find(self, call: grpc.HandlerCallDetails) -> "Handler | None":
        """The handler of a call. None: no service here has it."""
        found = self._of_servicer(call)
        if found is None or not self._doors:
            return found
        return grpc.stream_stream_rpc_method_handler(partial(self._answers, call), bytes, bytes)

    def _of_servicer(self, call: grpc.HandlerCallDetails) -> "Handler | None":
        found = (one.service(call) for one in self._generic)
        return next((one for one in found if one), None)

    async def _answers(
        self, call: grpc.HandlerCallDetails, requests: AsyncIterator[bytes], context: Any
    ) -> AsyncGenerator[bytes]:
        handler = await self._behind(self._doors, call)
        async with aclosing(answers(handler, requests, context)) as responses:
            async for response in responses:
                yield response

    async def _behind(
        self, doors: Sequence[grpc.aio.ServerInterceptor], call: grpc.HandlerCallDetails
    ) -> Any:
        """The handler of a call as it is behind some doors."""
        if not doors:
            return self._of_servicer(call)
        return await doors[0].intercept_service(partial(self._behind, doors[1:]), call)


async def answers(
    handler: Handler, requests: AsyncIterator[bytes], context: Any
) -> AsyncGenerator[bytes]:
    """What a handler of any kind answers to encoded requests, encoded."""
    read: Any = partial(message_of, handler.request_deserializer or bytes)
    write: Any = handler.response_serializer or bytes
    asked: Any = (read(one) async for one in requests) if handler.request_streaming else None
    if asked is None:
        asked = read(await anext(requests, b""))
    behaviour = behaviour_of(handler)
    answer = behaviour(asked, context)
    if not handler.response_streaming:
        yield write(await answer)
    elif inspect.isawaitable(answer):
        await answer  # it refuses the call
    else:
        async for response in answer:
            yield write(response)
