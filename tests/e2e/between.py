"""A gRPC server that stands before another one: it passes every call on, message by message.

Tests see what is said by its name, hold single messages, and cut the connection.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc

from sllm import rpc
from tests.support import sent

Watch = Callable[[str, bool, bytes], Awaitable[None]]
"""Told of every message before it is passed on: method, whether it is a request, and its bytes."""
Passed = Callable[[str, bool, bytes], None]
"""Told of every message once the next one is wanted: it has been passed on."""


class Between(grpc.GenericRpcHandler):
    """Passes calls on to `target`."""

    def __init__(self, target: str) -> None:
        self.watch: Watch | None = None
        self.passed: Passed | None = None
        self._channel = rpc.channel(target)
        self._server = grpc.aio.server(handlers=[self], options=list(rpc.SERVER_OPTIONS))
        self._calls: dict[Any, str] = {}
        self._broken: set[Any] = set()
        self._is_cut: Callable[[str], bool] = _nothing

    async def start(self, address: str) -> str:
        """Serves on host:port; returns the same with the port."""
        port = self._server.add_insecure_port(address)
        await self._server.start()
        return f"{address.rpartition(':')[0]}:{port}"

    async def stop(self) -> None:
        """Ends all calls."""
        self.cut()
        await self._server.stop(None)
        await self._channel.close()

    def cut(self, is_cut: Callable[[str], bool] | None = None) -> None:
        """Breaks the calls of these methods, or all, and refuses them until they are mended."""
        self._is_cut = is_cut or _everything
        for call, method in list(self._calls.items()):
            if self._is_cut(method):
                self._broken.add(call)
                call.cancel()

    def mend(self) -> None:
        """Passes all on again."""
        self._is_cut = _nothing

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        """Every method is a stream of bytes both ways; see grpc.GenericRpcHandler."""

        async def passing(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
            async for response in self._pass(details.method, requests, context):
                yield response

        return grpc.stream_stream_rpc_method_handler(passing)

    async def _pass(
        self, method: str, requests: AsyncIterator[bytes], context: Any
    ) -> AsyncIterator[bytes]:
        if self._is_cut(method):
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the connection is cut")
        metadata = [one for one in context.invocation_metadata() if one[0] != "user-agent"]
        asking = self._seen(method, True, requests)
        begin: Any = self._channel.stream_stream(method)
        call = begin(timeout=context.time_remaining(), metadata=metadata)
        self._calls[call] = method
        try:
            async with sent(call, asking):
                async for response in self._seen(method, False, call):
                    yield response
        except grpc.aio.AioRpcError as error:
            await context.abort(error.code(), error.details(), tuple(error.trailing_metadata()))
        except asyncio.CancelledError:
            if call not in self._broken:
                raise
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the connection was cut")
        finally:
            del self._calls[call]
            self._broken.discard(call)

    async def _seen(
        self, method: str, asking: bool, messages: AsyncIterator[bytes]
    ) -> AsyncIterator[bytes]:
        async for message in messages:
            if self.watch:
                await self.watch(method, asking, message)
            yield message
            if self.passed:
                self.passed(method, asking, message)


def _everything(method: str) -> bool:
    return True


def _nothing(method: str) -> bool:
    return False
