"""Tells the control plane what this node holds and does: all of it once, then what changes."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TypeVar

import grpc
import structlog
from serverlessllm.v1 import fleet_service_pb2 as pb
from serverlessllm.v1 import types_pb2 as types_pb
from serverlessllm.v1.fleet_service_pb2_grpc import FleetServiceStub

from sllm import sending
from sllm.clock import Clock
from sllm.durations import to_seconds
from sllm.node.agent import Agent
from sllm.node.api import reports
from sllm.node.instances.init_times import InitKey

log = structlog.get_logger()

ReportCall = grpc.aio.StreamStreamCall[pb.ReportRequest, pb.ReportResponse]

Part = TypeVar("Part")
Written = TypeVar("Written")

RECONNECT_SECONDS = 0.5
_GATHER_SECONDS = 0.02
"""Changes that come within this time travel in one report."""
_HEARTBEATS_PER_LEASE = 3
_SHOWN = 200
"""Characters of what could not be reported, in the log."""


@dataclass(slots=True)
class _Sent:
    """What the control plane has been told on this stream."""

    node: types_pb.Node = field(default_factory=types_pb.Node)
    copies: dict[tuple[str, int], types_pb.CheckpointCopy] = field(default_factory=dict)
    instances: dict[str, types_pb.Instance] = field(default_factory=dict)
    init_times: dict[InitKey, types_pb.InitObservation] = field(default_factory=dict)
    kept: dict[int, float] = field(default_factory=dict)


class Reporter:
    """Keeps one Report stream open for as long as the node runs."""

    def __init__(
        self, agent: Agent, node_id: str, address: str, channel: grpc.aio.Channel, clock: Clock
    ) -> None:
        self._agent = agent
        self._node_id = node_id
        self._address = address
        self._stub = FleetServiceStub(channel)
        self._clock = clock
        self._changed = asyncio.Event()
        self._resync = False
        self._lease = 3.0
        self._revision = 0
        agent.subscribe(self._changed.set)

    async def run(self) -> None:
        """Reports until it is cancelled, over new streams where old ones end."""
        while True:
            try:
                await self._report()
            except grpc.aio.AioRpcError as error:
                log.warning("node.report_ended", code=error.code().name, details=error.details())
            except Exception:
                log.exception("node.report_failed")  # the next stream tells everything anew
            await self._clock.sleep(RECONNECT_SECONDS)

    async def _report(self) -> None:
        """One stream, to its end or the first failure, whichever side it is on.

        What is sent is not left to grpc.aio, which would end the stream without a word if it could
        not be made.
        """
        self._resync = True
        call = self._stub.Report()
        sides = [asyncio.create_task(side(call)) for side in (self._receive, self._send)]
        receiving, sent = sides
        try:
            await asyncio.wait(sides, return_when=asyncio.FIRST_COMPLETED)
            if sent.done():
                await sent
            await receiving  # it knows how a stream ended that takes no more
        finally:
            call.cancel()
            for side in sides:
                side.cancel()
            await asyncio.gather(*sides, return_exceptions=True)

    async def _send(self, call: ReportCall) -> None:
        async with aclosing(self._messages()) as messages:
            async for message in messages:
                if not await sending.write(call, message):
                    return

    async def _receive(self, call: ReportCall) -> None:
        async for response in call:
            if response.HasField("resync"):
                self._resync = True
                self._changed.set()
            else:
                self._lease = to_seconds(response.ack.lease)

    async def _messages(self) -> AsyncGenerator[pb.ReportRequest]:
        sent = _Sent()
        while True:
            self._changed.clear()
            if self._resync:
                self._resync, sent = False, self._now()
                yield self._message(full=self._full(sent))
            elif delta := self._delta(sent, now := self._now()):
                sent = now
                yield self._message(delta=delta)
            else:
                yield self._message(heartbeat=pb.Heartbeat())
            await self._until_due()

    async def _until_due(self) -> None:
        """Returns after a change, or when a heartbeat is due."""
        try:
            await asyncio.wait_for(self._changed.wait(), self._lease / _HEARTBEATS_PER_LEASE)
            await self._clock.sleep(_GATHER_SECONDS)
        except TimeoutError:
            return

    def _message(
        self,
        *,
        full: pb.FullReport | None = None,
        delta: pb.DeltaReport | None = None,
        heartbeat: pb.Heartbeat | None = None,
    ) -> pb.ReportRequest:
        if heartbeat is None:
            self._revision += 1
        return pb.ReportRequest(
            node_id=self._node_id,
            revision=self._revision,
            full=full,
            delta=delta,
            heartbeat=heartbeat,
        )

    def _now(self) -> _Sent:
        holds, copied_over = self._agent.contents.holds, self._agent.instances.books.copied_over
        copies = _written(
            self._agent.contents.copies(),
            lambda copy: reports.copy_message(
                copy,
                holds.on(copy.digest, copy.tier),
                copied_over(copy.made_of, copy.made_for),
            ),
        )
        instances = _written(
            self._agent.instances.by_id.values(),
            lambda instance: reports.instance_message(instance, self._node_id),
        )
        return _Sent(
            node=reports.node_message(self._agent, self._node_id, self._address),
            copies={(copy.digest, copy.tier): copy for copy in copies},
            instances={instance.instance_id: instance for instance in instances},
            init_times=reports.init_messages(self._agent.instances.init_times),
            kept=self._agent.store.kept.prefixes.saved(),
        )

    def _full(self, now: _Sent) -> pb.FullReport:
        node = types_pb.Node()
        node.CopyFrom(now.node)
        node.copies.extend(now.copies.values())
        node.init_observations.extend(now.init_times.values())
        kept = reports.kept_message({}, now.kept)
        return pb.FullReport(node=node, instances=now.instances.values(), kept=kept)

    def _delta(self, sent: _Sent, now: _Sent) -> pb.DeltaReport | None:
        """What has changed, or None."""
        copies = [copy for key, copy in now.copies.items() if sent.copies.get(key) != copy]
        instances = [one for key, one in now.instances.items() if sent.instances.get(key) != one]
        copies += _emptied(copy for key, copy in sent.copies.items() if key not in now.copies)
        instances += _gone(one for key, one in sent.instances.items() if key not in now.instances)
        init_times = [one for key, one in now.init_times.items() if sent.init_times.get(key) != one]
        kept = reports.kept_message(sent.kept, now.kept)
        if not (copies or instances or init_times or kept) and sent.node == now.node:
            return None
        return pb.DeltaReport(
            node=now.node,
            copies=copies,
            instances=instances,
            init_observations=init_times,
            kept=kept,
        )


def _written(parts: Iterable[Part], write: Callable[[Part], Written]) -> list[Written]:
    """The messages of what can be written: one part that cannot must not silence the node."""
    written = []
    for part in parts:
        try:
            written.append(write(part))
        except (ValueError, OverflowError, TypeError) as error:
            log.error("node.part_not_reported", part=repr(part)[:_SHOWN], problem=str(error))
    return written


def _emptied(copies: Iterable[types_pb.CheckpointCopy]) -> list[types_pb.CheckpointCopy]:
    return [types_pb.CheckpointCopy(digest=copy.digest, tier=copy.tier) for copy in copies]


def _gone(instances: Iterable[types_pb.Instance]) -> list[types_pb.Instance]:
    return [
        types_pb.Instance(
            instance_id=one.instance_id,
            deployment=one.deployment,
            node_id=one.node_id,
            state=types_pb.INSTANCE_STATE_GONE,
        )
        for one in instances
    ]
