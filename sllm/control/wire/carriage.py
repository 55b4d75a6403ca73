"""The router's end of a generation whose tokens another control plane carries to its caller.

The leader says where it is served, and hears of its tokens a few times a second; the control plane
that was asked calls the node.
"""

import itertools
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final

from serverlessllm.v1 import inference_service_pb2 as inference_pb
from serverlessllm.v1 import node_service_pb2 as node_pb
from serverlessllm.v1 import replica_service_pb2 as pb

from sllm import errors
from sllm.control.wire import common
from sllm.control.wire.multiplex import GenerateCall, TypedErrors
from sllm.statuses import from_failure

_CURRENT: Final[ContextVar["Carriage"]] = ContextVar("carriage")


@dataclass(frozen=True, slots=True)
class _Called:
    """A call that another control plane makes."""

    call: GenerateCall
    address: str
    """Of its node."""
    typed_errors: TypedErrors


class Carriage:
    """One generation's. Belongs to the event loop."""

    def __init__(self, tell: Callable[[pb.CarryResponse], None], instance_id: str = "") -> None:
        """`tell` takes orders for whoever carries it; `instance_id` as in CarryBegin."""
        self.instance_id = instance_id
        self.carries = False
        """Whether the call that was begun last is carried, and not made by the leader itself."""
        self.unreached = False
        """Whether whoever carries it did not reach that call's node, or had to give it up."""
        self._tell = tell
        self._numbers = itertools.count(1)
        self._calls: dict[int, _Called] = {}
        self._first_is_due = False

    def begin(
        self,
        node_id: str,
        address: str,
        term: int,
        request: inference_pb.GenerateRequest,
        timeout: float | None,
        trace: Mapping[str, str],
        typed_errors: TypedErrors,
    ) -> GenerateCall:
        """Has a node called; `typed_errors` is the context in which the node is heard of."""
        number = next(self._numbers)
        call = GenerateCall(lambda: self._give_up(number))
        self._calls[number] = _Called(call, address, typed_errors)
        self.carries = self._first_is_due = True
        self.unreached = False
        begin = node_pb.CallBegin(
            number=number,
            request=request,
            timeout=common.optional_duration(timeout),
            trace=trace,
        )
        order = pb.CarryOpen(node_id=node_id, node_address=address, term=term, call=begin)
        self._tell(pb.CarryResponse(open=order))
        return call

    def recall(self, address: str) -> None:
        """Has calls of a node given up; each ends once all that came of it before is here."""
        for number, one in self._calls.items():
            if one.address == address:
                self._tell(pb.CarryResponse(give_up=number))

    def take(self, output: node_pb.CallOutput) -> None:
        """Takes what has come of a call; of one that has ended, nothing."""
        called = self._calls.get(output.number)
        if called is None:
            return
        over = output.HasField("failure")
        if over:
            error = from_failure(output.failure)
            called.call.end(self._failure(error, called.typed_errors))
        if over or called.call.take(output):
            del self._calls[output.number]

    def passes(self, event: inference_pb.GenerateResponse) -> bool:
        """Whether whoever carries it has yet to hear of an event; each is asked for once."""
        if not self.carries or event.WhichOneof("event") != "tokens":
            return True
        first, self._first_is_due = self._first_is_due, False
        return first

    def _failure(self, error: errors.SllmError, typed_errors: TypedErrors) -> errors.SllmError:
        self.unreached = isinstance(error, errors.NodeLost)
        try:
            with typed_errors():
                raise error
        except errors.SllmError as typed:
            return typed

    def _give_up(self, number: int) -> None:
        del self._calls[number]
        self._tell(pb.CarryResponse(give_up=number))


def enter(carriage: Carriage) -> None:
    """Says that the generation which this task takes in is carried."""
    _CURRENT.set(carriage)


def current() -> Carriage | None:
    """What carries the generation that this task takes in. None: its caller reads it here."""
    return _CURRENT.get(None)
