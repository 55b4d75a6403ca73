"""Which nodes are there: a node is a member from its first full report to the end of its stream."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from enum import Enum
from typing import Any, Protocol

import structlog

from sllm import errors
from sllm.control.cluster.instances import Instance
from sllm.control.cluster.nodes import NodeView
from sllm.control.config import ControlConfig
from sllm.control.state.state import State
from sllm.control.tasks import Tasks
from sllm.control.types.reports import Delta, Full, Report
from sllm.control.wire.node_client import Node
from sllm.control.wire.nodes import Nodes

log = structlog.get_logger()


_STEPS = 4
"""The parts in which a lease is waited for. If this process was held up, one part is over when it
goes on, and the others are left to read what nodes have sent: its own pause loses no node."""


class Answer(Enum):
    """What a node is told after a message."""

    ACK = "ack"
    RESYNC = "resync"
    NOTHING = "nothing"
    """It has been asked for a full report, which has not come yet."""


class ReportStream:
    """One Report stream. A node has at most one: a newer one replaces it."""

    def __init__(self, lease: float) -> None:
        self.node_id = ""
        """Empty until the first full report."""
        self.resyncing = False
        self._lease = lease
        self._ended: asyncio.Future[errors.SllmError] = asyncio.get_running_loop().create_future()

    def end(self, error: errors.SllmError) -> None:
        """Ends the stream with `error`, at once if it waits for a message."""
        if not self._ended.done():
            self._ended.set_result(error)

    async def next(self, reports: AsyncIterator[Report]) -> Report | None:
        """The next report, or None at the end of the stream.

        Raises:
            errors.NodeLost: Nothing has come within the lease.
            errors.SllmError: What `end` was told.
        """
        read = asyncio.ensure_future(anext(reports, None))
        either: list[asyncio.Future[Any]] = [read, self._ended]
        try:
            for _ in range(_STEPS):
                part = self._lease / _STEPS
                await asyncio.wait(either, timeout=part, return_when=asyncio.FIRST_COMPLETED)
                if self._ended.done():
                    raise self._ended.result()
                if read.done():
                    return await read
        finally:
            read.cancel()
        raise errors.NodeLost(f"nothing was reported for {self._lease} s; connect again")


class NodeListener(Protocol):
    """Whoever acts on what becomes of nodes. It is told once the fleet shows it."""

    def node_reported(self, before: NodeView | None, view: NodeView) -> None:
        """A node has changed. `before` is None: it has become a member."""
        ...

    def node_lost(self, node_id: str, instances: Sequence[Instance]) -> None:
        """A node is a member no more; `instances` went with it."""
        ...


class Membership:
    """Follows the Report streams of all nodes."""

    def __init__(
        self, state: State, nodes: Nodes, listener: NodeListener, config: ControlConfig
    ) -> None:
        self._state = state
        self._nodes = nodes
        self._listener = listener
        self._lease = config.lease_seconds
        self._streams: dict[str, ReportStream] = {}
        self._tasks = Tasks()
        self._closing = False

    def open(self) -> ReportStream:
        """A new stream; `leave` has to be told of its end.

        Raises:
            errors.ShuttingDown: The control plane is going down.
        """
        if self._closing:
            raise errors.ShuttingDown("the control plane is going down; connect again")
        return ReportStream(self._lease)

    async def follow(
        self, stream: ReportStream, reports: AsyncIterator[Report]
    ) -> AsyncGenerator[tuple[Answer, int]]:
        """Takes in a node's reports; yields an answer to each, with the revision that it answers.

        Raises:
            errors.NodeLost: Nothing has come within the lease.
            errors.RequestIdInUse: The node has opened another stream.
            errors.ShuttingDown: The control plane is going down.
        """
        while (report := await stream.next(reports)) is not None:
            yield self._take(stream, report), report.revision

    def leave(self, stream: ReportStream) -> None:
        """Ends the membership of a stream's node, unless it reports on another one."""
        node_id = stream.node_id
        if self._streams.get(node_id) is not stream:
            return
        log.warning("control.node_lost", node=node_id)
        del self._streams[node_id]
        lost = self._state.fleet.remove(node_id)
        self._state.kept_prefixes.forget(node_id)
        self._close_later(self._nodes.drop(node_id))
        self._listener.node_lost(node_id, lost)

    def end_streams(self) -> None:
        """Ends all streams, and takes no new ones."""
        self._closing = True
        for stream in self._streams.values():
            stream.end(errors.ShuttingDown("the control plane is going down; connect again"))

    async def close(self) -> None:
        """Returns once the channels of lost nodes are closed."""
        await self._tasks.close()

    def _take(self, stream: ReportStream, report: Report) -> Answer:
        if not stream.node_id and isinstance(report.body, Full):
            self._join(stream, report.node_id, report.body)
        before = self._state.fleet.nodes.get(report.node_id)
        known = stream.node_id == report.node_id
        if not known or not self._state.fleet.apply(report, time.time()):
            # A node that is asked once sends all of it; what it has sent before that is skipped.
            asked, stream.resyncing = stream.resyncing, True
            return Answer.NOTHING if asked else Answer.RESYNC
        self._nodes.reported(report.node_id)
        if report.body is not None:
            self._take_kept(report.node_id, report.body)
            stream.resyncing = stream.resyncing and not isinstance(report.body, Full)
            self._listener.node_reported(before, self._state.fleet.nodes[report.node_id])
        return Answer.ACK

    def _take_kept(self, node_id: str, body: Full | Delta) -> None:
        if isinstance(body, Full):
            self._state.kept_prefixes.replace(node_id, body.kept)
        else:
            self._state.kept_prefixes.change(node_id, body.kept, body.kept_no_more)

    def _join(self, stream: ReportStream, node_id: str, full: Full) -> None:
        log.info("control.node_joined", node=node_id, address=full.facts.address)
        stream.node_id = node_id
        if former := self._streams.get(node_id):
            former.end(errors.RequestIdInUse(f"node {node_id} reports on a newer stream"))
        self._streams[node_id] = stream
        self._close_later(self._nodes.join(full.facts))

    def _close_later(self, node: Node | None) -> None:
        if node:
            self._tasks.spawn(node.close(), name=f"close {node.node_id}")
