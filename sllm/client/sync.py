"""The client for programs without an event loop: `AsyncClient`, in a loop and thread of its own."""

import asyncio
import functools
import threading
import weakref
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from concurrent.futures import CancelledError, Future
from types import TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar

from sllm import errors
from sllm.client.aio import AsyncClient
from sllm.client.stream import AsyncStream
from sllm.client.types.events import Event

P = ParamSpec("P")
R = TypeVar("R")
Inner = TypeVar("Inner")
Inner_co = TypeVar("Inner_co", covariant=True)


class BackgroundLoop:
    """An event loop that runs in a thread of its own."""

    def __init__(self) -> None:
        self._stopping = False
        self._submitting = threading.RLock()
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

    @property
    def is_stopping(self) -> bool:
        """Whether it takes nothing more."""
        return self._stopping

    @property
    def is_here(self) -> bool:
        """Whether the caller is in the loop's own thread, where nobody may wait for it."""
        return threading.current_thread() is self._thread

    def run(self, coroutine: Coroutine[Any, Any, R]) -> R:
        """Runs a coroutine to its end, in the loop. What interrupts the wait cancels it.

        Raises:
            RuntimeError: The client is closed, or it is called by its own callback.
            errors.Cancelled: The client was closed meanwhile.
        """
        if self.is_here:
            coroutine.close()
            raise RuntimeError("a callback cannot wait for the client whose thread it runs in")
        future = self.begin(coroutine)
        try:
            return future.result()
        except CancelledError as error:
            raise errors.Cancelled("the client was closed meanwhile") from error
        finally:
            future.cancel()  # what interrupts the wait, such as Ctrl-C, ends the work as well

    def begin(self, coroutine: Coroutine[Any, Any, R]) -> Future[R]:
        """Has the loop run a coroutine, and does not wait for it.

        Raises:
            RuntimeError: The client is closed.
        """
        # Without the lock the loop could end between the check and the submission, and would then
        # neither run the coroutine nor cancel it: its caller would wait for good.
        with self._submitting:
            if not self._stopping:
                try:
                    return asyncio.run_coroutine_threadsafe(coroutine, self._loop)
                except BaseException:
                    # Interrupted: whether the loop has it or not, nobody can wait for it.
                    self._loop.call_soon_threadsafe(coroutine.close)
                    raise
        coroutine.close()
        raise RuntimeError("the client is closed")

    def stop(self) -> None:
        """Ends the loop and, unless it is the caller's own, waits for its thread."""
        with self._submitting:
            self._stopping = True
            self._loop.call_soon_threadsafe(self._stopped.set)
        if not self.is_here:
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
            if not self._loop.is_stopping:  # a loop that stops closes the generator itself
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

    Threads may share a client. Its callbacks run in its own thread, so they cannot call it.

    Example:
        with sllm.Client() as client:
            client.deploy("tiny", "/models/tiny", keep_alive=60.0)
            result = client.complete("tiny", "Once upon a time", max_tokens=32)
            print(result.text, result.usage.completion_tokens)
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        call_timeout: float = 60.0,
        api_key: str | None = None,
        tls_ca: str | None = None,
    ) -> None:
        """As for `AsyncClient`."""
        inner = AsyncClient(address, call_timeout=call_timeout, api_key=api_key, tls_ca=tls_ca)
        super().__init__(inner, BackgroundLoop())
        # It also closes a client that is dropped, or that is open when the program ends.
        self._finalizer = weakref.finalize(self, _close, self._inner, self._loop)

    @property
    def address(self) -> str:
        """host:port of the control plane."""
        return self._inner.address

    deploy = _blocking(AsyncClient.deploy)
    deployment = _blocking(AsyncClient.deployment)
    deployments = _blocking(AsyncClient.deployments)
    watch_deployment = _iterating(AsyncClient.watch_deployment)
    delete = _blocking(AsyncClient.delete)
    instances = _blocking(AsyncClient.instances)
    nodes = _blocking(AsyncClient.nodes)
    watch = _iterating(AsyncClient.watch)
    receipt = _blocking(AsyncClient.receipt)
    explain = _blocking(AsyncClient.explain)
    prefetch = _blocking(AsyncClient.prefetch)
    pin = _blocking(AsyncClient.pin)
    unpin = _blocking(AsyncClient.unpin)
    pins = _blocking(AsyncClient.pins)
    drain = _blocking(AsyncClient.drain)
    undrain = _blocking(AsyncClient.undrain)
    migrate = _blocking(AsyncClient.migrate)
    set_tenant = _blocking(AsyncClient.set_tenant)
    tenants = _blocking(AsyncClient.tenants)
    model = _blocking(AsyncClient.model)
    tokenize = _blocking(AsyncClient.tokenize)
    count_tokens = _blocking(AsyncClient.count_tokens)
    detokenize = _blocking(AsyncClient.detokenize)
    token_texts = _blocking(AsyncClient.token_texts)
    render_chat = _blocking(AsyncClient.render_chat)
    embed = _blocking(AsyncClient.embed)
    score = _blocking(AsyncClient.score)
    generate = _opening(AsyncClient.generate)
    complete = _blocking(AsyncClient.complete)
    cancel = _blocking(AsyncClient.cancel)
    submit_batch = _blocking(AsyncClient.submit_batch)
    batch = _blocking(AsyncClient.batch)
    create_key = _blocking(AsyncClient.create_key)
    keys = _blocking(AsyncClient.keys)
    revoke_key = _blocking(AsyncClient.revoke_key)
    batches = _blocking(AsyncClient.batches)
    batch_results = _iterating(AsyncClient.batch_results)
    cancel_batch = _blocking(AsyncClient.cancel_batch)
    delete_batch = _blocking(AsyncClient.delete_batch)

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
    """Closes a client; of one that is garbage, perhaps in the loop's own thread."""
    if loop.is_here:
        loop.begin(client.close()).add_done_callback(lambda _: loop.stop())
    else:
        loop.run(client.close())
        loop.stop()


class Stream(_Face[AsyncStream]):
    """The events of a generation, as they come: `for event in stream`.

    The generation goes on for as long as the stream is there. To leave it early, `cancel()` it,
    use it as a context manager, or drop it.

    Example:
        with client.generate("tiny", "Once upon a time", max_tokens=32) as stream:
            for event in stream:
                if isinstance(event, sllm.Tokens):
                    print(event.text, end="", flush=True)
            print(stream.result().finish_reason)
    """

    def __init__(self, inner: AsyncStream, client: Client) -> None:
        super().__init__(inner, client._loop)
        self._client = client  # keeps the loop alive that the stream lives in

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
