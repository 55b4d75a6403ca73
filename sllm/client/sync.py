"""The client for programs without an event loop: `AsyncClient`, in a loop and thread of its own."""

import asyncio
import functools
import threading
import weakref
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar

from sllm.client.aio import AsyncClient
from sllm.client.events import Event
from sllm.client.stream import AsyncStream

P = ParamSpec("P")
R = TypeVar("R")
Inner = TypeVar("Inner")
Inner_co = TypeVar("Inner_co", covariant=True)


class BackgroundLoop:
    """An event loop that runs in a thread of its own."""

    def __init__(self) -> None:
        ready: Future[asyncio.AbstractEventLoop] = Future()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._until_stopped(ready)), name="sllm-client", daemon=True
        )
        self._thread.start()
        self._loop = ready.result()

    async def _until_stopped(self, ready: Future[asyncio.AbstractEventLoop]) -> None:
        self._stopped = asyncio.Event()
        ready.set_result(asyncio.get_running_loop())
        await self._stopped.wait()

    def run(self, coroutine: Coroutine[Any, Any, R]) -> R:
        """Runs a coroutine to its end, in the loop. What interrupts the wait cancels it."""
        if self._loop.is_closed():
            coroutine.close()
            raise RuntimeError("the client is closed")
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        finally:
            future.cancel()

    def stop(self) -> None:
        """Ends the loop and, unless it is the caller's own, waits for its thread."""
        self._loop.call_soon_threadsafe(self._stopped.set)
        if threading.current_thread() is not self._thread:
            self._thread.join()


class _Face(Generic[Inner_co]):
    """What a caller without a loop holds of something that lives in one."""

    def __init__(self, inner: Inner_co, loop: BackgroundLoop) -> None:
        self._inner = inner
        self._loop = loop


def _blocking(
    method: Callable[Concatenate[Inner, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[_Face[Inner], P], R]:
    """A coroutine method as one that waits, with the same arguments."""

    def call(self: _Face[Inner], /, *args: P.args, **kwargs: P.kwargs) -> R:
        return self._loop.run(method(self._inner, *args, **kwargs))

    functools.update_wrapper(call, method)
    return call


def _iterating(
    method: Callable[Concatenate[Inner, P], AsyncGenerator[R]],
) -> Callable[Concatenate[_Face[Inner], P], Iterator[R]]:
    """An asynchronous generator as one that waits, with the same arguments."""

    def call(self: _Face[Inner], /, *args: P.args, **kwargs: P.kwargs) -> Iterator[R]:
        values = method(self._inner, *args, **kwargs)
        try:
            while (value := self._loop.run(_next(values))) is not _END:
                yield value  # type: ignore[misc]  # it is no end
        finally:
            self._loop.run(values.aclose())

    functools.update_wrapper(call, method)
    return call


_END = object()


async def _next(values: AsyncGenerator[R]) -> R | object:
    return await anext(values, _END)


def _opening(
    method: Callable[Concatenate[AsyncClient, P], AsyncStream],
) -> Callable[Concatenate["Client", P], "Stream"]:
    """The method that begins a stream, with the same arguments."""

    def call(self: "Client", /, *args: P.args, **kwargs: P.kwargs) -> "Stream":
        async def begin() -> AsyncStream:
            return method(self._inner, *args, **kwargs)

        return Stream(self._loop.run(begin()), self)

    functools.update_wrapper(call, method)
    return call


class Client(_Face[AsyncClient]):
    """`AsyncClient` for programs without an event loop: each method waits for its result.

    May be used by several threads. Callbacks run in the client's own thread.
    """

    def __init__(self, address: str | None = None, *, call_timeout: float = 60.0) -> None:
        """As for `AsyncClient`."""
        super().__init__(AsyncClient(address, call_timeout=call_timeout), BackgroundLoop())
        # Also when the client is dropped, and when the program ends.
        self._finalizer = weakref.finalize(self, _close, self._inner, self._loop)

    @property
    def address(self) -> str:
        """host:port of the control plane."""
        return self._inner.address

    deploy = _blocking(AsyncClient.deploy)
    deployment = _blocking(AsyncClient.deployment)
    deployments = _blocking(AsyncClient.deployments)
    delete = _blocking(AsyncClient.delete)
    instances = _blocking(AsyncClient.instances)
    nodes = _blocking(AsyncClient.nodes)
    watch = _iterating(AsyncClient.watch)
    explain = _blocking(AsyncClient.explain)
    prefetch = _blocking(AsyncClient.prefetch)
    pin = _blocking(AsyncClient.pin)
    unpin = _blocking(AsyncClient.unpin)
    pins = _blocking(AsyncClient.pins)
    drain = _blocking(AsyncClient.drain)
    undrain = _blocking(AsyncClient.undrain)
    migrate = _blocking(AsyncClient.migrate)
    generate = _opening(AsyncClient.generate)
    complete = _blocking(AsyncClient.complete)
    cancel = _blocking(AsyncClient.cancel)

    def close(self) -> None:
        """Ends the streams under way, and the connection."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _close(client: AsyncClient, loop: BackgroundLoop) -> None:
    loop.run(client.close())
    loop.stop()


class Stream(_Face[AsyncStream]):
    """The events of a generation, as they come: `for event in stream`.

    The generation goes on for as long as the stream is there. To leave it early, `cancel()` it,
    use it as a context manager, or drop it.
    """

    def __init__(self, inner: AsyncStream, client: Client) -> None:
        super().__init__(inner, client._loop)
        self._client = client  # whose loop the stream lives in

    @property
    def request_id(self) -> str:
        """Id by which the request can be cancelled from anywhere."""
        return self._inner.request_id

    receive = _blocking(AsyncStream.receive)
    result = _blocking(AsyncStream.result)
    cancel = _blocking(AsyncStream.cancel)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event:
        event = self.receive()
        if event is None:
            raise StopIteration
        return event

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.cancel()
