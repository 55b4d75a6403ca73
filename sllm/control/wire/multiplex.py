"""The router's end of a stream of many calls of Generate on one node."""

import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Final, TypeAlias

import grpc
import structlog
from serverlessllm.v1 import inference_service_pb2 as inference_pb
from serverlessllm.v1 import node_service_pb2 as pb

from sllm import errors, rpc, sending
from sllm.control.wire import common
from sllm.statuses import from_failure
from sllm.token_events import extend

if TYPE_CHECKING:  # it is in the stubs alone
    from serverlessllm.v1.node_service_pb2_grpc import NodeServiceAsyncStub

log = structlog.get_logger()

TypedErrors: TypeAlias = Callable[[], AbstractContextManager[None]]
Orders: TypeAlias = Callable[[], grpc.aio.Metadata]

_END_SECONDS: Final = 1.0
"""For a stream whose channel is closed to notice it."""
_MOST_TOGETHER: Final = 256
"""Tokens that become one event while they wait for a slow caller."""


class GenerateCall:
    """One call on a node: what it gives, in order, up to `finished` or `moved`."""

    def __init__(self, hang_up: Callable[[], None]) -> None:
        """`hang_up` tells the node that nobody reads it any more."""
        self._hang_up = hang_up
        self._events: deque[inference_pb.GenerateResponse] = deque()
        self._error: errors.SllmError | None = None
        self._ended = False
        self._changed = asyncio.Event()

    def __aiter__(self) -> "GenerateCall":
        return self

    async def __anext__(self) -> inference_pb.GenerateResponse:
        """The next event.

        Raises:
            errors.SllmError: Why it has ended.
        """
        while not self._events:
            if self._error:
                raise self._error
            if self._ended:
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()
        return self._events.popleft()

    def tell(self, changed: asyncio.Event) -> None:
        """Has `changed` set from now on when there is something to take, for `take_now`."""
        self._changed = changed
        changed.set()

    def take_now(self) -> inference_pb.GenerateResponse | None:
        """The next event. None: there is none yet, or no more.

        Raises:
            errors.SllmError: Why it has ended.
        """
        if not self._events and self._error:
            raise self._error
        return self._events.popleft() if self._events else None

    def hang_up(self, error: errors.SllmError | None = None) -> None:
        """Ends it at once, for its reader with `error`; one that has ended is left as it is."""
        if not self._ended:
            self._events.clear()
            self.end(error)
            self._hang_up()

    # --- what its stream does -----------------------------------------------------------------

    def take(self, output: pb.CallOutput) -> bool:
        """Adds what the node has given; says whether that was the last of it."""
        if output.HasField("failure"):
            self.end(from_failure(output.failure))
        else:
            self._add(output.event)
        return self._ended

    def end(self, error: errors.SllmError | None) -> None:
        """Lets the reader end, with `error` if there is one, once it has had what waits."""
        self._ended, self._error = True, error
        self._changed.set()

    def _add(self, event: inference_pb.GenerateResponse) -> None:
        kind = event.WhichOneof("event")
        last = self._events[-1] if self._events else None
        if kind == "tokens" and last is not None and _has_room(last):
            extend(last.tokens, event.tokens)
        else:
            self._events.append(event)
        self._ended = kind in ("finished", "moved")
        self._changed.set()


class Multiplex:
    """The calls of Generate on one node.

    The stream that carries them is opened with the first, and again with the first after its end;
    or before, by whoever wants the node to know its term.
    """

    def __init__(
        self, stub: "NodeServiceAsyncStub", typed_errors: TypedErrors, orders: Orders
    ) -> None:
        """`typed_errors` gives the context in which the node is called; `orders` what goes along.

        A call is not begun where `orders` raises an error.
        """
        self._stub = stub
        self._typed_errors = typed_errors
        self._orders = orders
        self._numbers = itertools.count(1)
        self._stream: _Stream | None = None

    def begin(
        self,
        request: inference_pb.GenerateRequest,
        timeout: float | None,
        trace: Mapping[str, str],
    ) -> GenerateCall:
        """Begins a call; every error comes with reading it.

        Args:
            request: Is copied.
            timeout: Seconds until its deadline. None: it has none.
            trace: Headers of the trace that it belongs to.
        """
        begin = pb.CallBegin(
            number=next(self._numbers),
            request=request,
            timeout=common.optional_duration(timeout),
            trace=trace,
        )
        try:
            return self._opened().begin(begin)
        except errors.NotLeader as error:
            call = GenerateCall(lambda: None)
            call.end(error)
            return call

    def open(self) -> None:
        """Opens the stream, if it is not.

        Raises:
            errors.NotLeader: `orders` has.
        """
        self._opened()

    def _opened(self) -> "_Stream":
        metadata = self._orders()
        if self._stream is None or self._stream.ended:
            self._stream = _Stream(self._stub, self._typed_errors, metadata)
        return self._stream

    async def close(self) -> None:
        """Returns when the stream has ended, once the node's channel is closed."""
        if self._stream:
            await self._stream.close()


class _Stream:
    """One stream, from its opening to its end."""

    def __init__(
        self,
        stub: "NodeServiceAsyncStub",
        typed_errors: TypedErrors,
        metadata: grpc.aio.Metadata,
    ) -> None:
        self._stub = stub
        self._typed_errors = typed_errors
        self._metadata = metadata
        self._commands: asyncio.Queue[pb.MultiplexRequest | None] = asyncio.Queue()
        self._calls: dict[int, GenerateCall] = {}
        self._task = asyncio.create_task(self._run(), name="multiplexed calls")

    @property
    def ended(self) -> bool:
        """Whether it takes no more calls."""
        return self._task.done()

    def begin(self, begin: pb.CallBegin) -> GenerateCall:
        """Adds a call."""
        number = begin.number
        call = GenerateCall(lambda: self._hang_up(number))
        command = pb.MultiplexRequest(begin=begin)
        if (size := command.ByteSize()) > rpc.MAX_MESSAGE_BYTES:  # it would end all others as well
            call.end(errors.InvalidArgument(f"the request has {size} bytes: shorten the prompt"))
            return call
        self._calls[number] = call
        self._commands.put_nowait(command)
        return call

    async def close(self) -> None:
        """Ends it, and what is under way."""
        await asyncio.wait([self._task], timeout=_END_SECONDS)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        error: errors.SllmError = errors.NodeLost("its node is lost; try again", retry_after=1.0)
        try:
            with self._typed_errors():
                await self._follow()
                raise errors.Unreachable("it has closed the stream of its calls")
        except errors.Cancelled as caught:
            error.__cause__ = caught  # it was given up on this side, and they go on elsewhere
        except errors.SllmError as caught:
            error = caught
        except Exception:
            log.exception("control.not_understood")
            error = errors.Internal("a node has sent what the control plane could not take")
        finally:
            for call in self._calls.values():
                call.end(error.for_one())

    async def _follow(self) -> None:
        """Deals out what comes, until the node ends the stream."""
        steps = self._stub.Multiplex(metadata=self._metadata)
        async with sending.from_queue(steps, self._commands):
            async for step in steps:
                for output in step.outputs:
                    self._deal(output)

    def _deal(self, output: pb.CallOutput) -> None:
        call = self._calls.get(output.number)
        if call and call.take(output):
            del self._calls[output.number]

    def _hang_up(self, number: int) -> None:
        del self._calls[number]
        self._commands.put_nowait(pb.MultiplexRequest(hang_up=number))


def _has_room(event: inference_pb.GenerateResponse) -> bool:
    return event.HasField("tokens") and len(event.tokens.token_ids) < _MOST_TOGETHER
