"""Nodes, as a control plane calls them that follows: each time by an order of the leader's."""

import asyncio
from dataclasses import dataclass
from typing import Final

from serverlessllm.v1 import replica_service_pb2 as pb

from sllm import errors, rpc
from sllm.control.tasks import Tasks
from sllm.control.wire import common
from sllm.control.wire.multiplex import GenerateCall
from sllm.control.wire.node_client import Node

_IDLE_SECONDS: Final = 60.0
"""Until the connection to a node is closed that nothing was read from."""


@dataclass(frozen=True, slots=True)
class _At:
    node_id: str
    address: str
    term: int


class _Ordered:
    """The `Authority` of whoever has given an order."""

    def __init__(self, term: int) -> None:
        self._term = term
        self.stale: errors.StaleTerm | None = None
        """What a node has said against it."""

    def term(self) -> int:
        """See Authority. Whether it may still be given is for the node to say."""
        return self._term

    def refused(self, error: errors.StaleTerm) -> None:
        """See Authority."""
        self.stale = error


class NodeCall:
    """A call of Generate that was ordered."""

    def __init__(self, number: int, instance_id: str, call: GenerateCall, link: "_Link") -> None:
        """`number` is the order's."""
        self.number = number
        self.instance_id = instance_id
        self.call = call
        self._link = link

    def said(self, error: errors.SllmError) -> errors.SllmError:
        """An error of the call, as the node has said it."""
        return self._link.authority.stale or error

    def close(self) -> None:
        """Hangs up, if it has not ended. To be called once."""
        self.call.hang_up()
        self._link.leave()


class _Link:
    """The connection to a node in one term."""

    def __init__(self, at: _At, dial: rpc.Dial, links: "NodeLinks") -> None:
        self.authority = _Ordered(at.term)
        self.node = Node(at, dial, self.authority)
        self._at = at
        self._links = links
        self._calls = 0
        self._closing: asyncio.TimerHandle | None = None

    def enter(self) -> None:
        """One more call uses it."""
        self._calls += 1
        if self._closing:
            self._closing.cancel()

    def leave(self) -> None:
        """One fewer does; once none has for a while, it is closed."""
        self._calls -= 1
        if not self._calls:
            loop = asyncio.get_running_loop()
            self._closing = loop.call_later(_IDLE_SECONDS, self._links.drop, self._at)


class NodeLinks:
    """All of them. Belongs to the event loop."""

    def __init__(self, dial: rpc.Dial) -> None:
        """`dial` leads to nodes."""
        self._dial = dial
        self._links: dict[_At, _Link] = {}
        self._tasks = Tasks()

    @property
    def open_links(self) -> int:
        """How many there are."""
        return len(self._links)

    def open(self, order: pb.CarryOpen) -> NodeCall:
        """Begins what was ordered; every error comes with reading it."""
        at = _At(order.node_id, order.node_address, order.term)
        link = self._links.get(at) or self._links.setdefault(at, _Link(at, self._dial, self))
        link.enter()
        begin = order.call
        timeout = common.seconds(begin.timeout) if begin.HasField("timeout") else None
        call = link.node.generate(begin.request, timeout, dict(begin.trace))
        return NodeCall(begin.number, begin.request.instance_id, call, link)

    def drop(self, at: _At) -> None:
        """Closes one."""
        link = self._links.pop(at)
        self._tasks.spawn(link.node.close(), name=f"close the connection to node {at.node_id}")

    async def close(self) -> None:
        """Closes all."""
        for at in list(self._links):
            self.drop(at)
        await self._tasks.join()
