"""A node as it reports itself to a control plane: what it holds, what it runs, over real gRPC."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
from serverlessllm.v1 import fleet_service_pb2 as fleet_pb
from serverlessllm.v1 import node_service_pb2 as node_pb
from serverlessllm.v1 import types_pb2 as pb
from serverlessllm.v1.fleet_service_pb2_grpc import FleetServiceStub

from sllm import rpc
from tests.control.script import MIB, Script
from tests.support import sent

Outbox = asyncio.Queue[fleet_pb.ReportRequest]
"""Reports to be sent."""


class ReportingNode:
    """Keeps the books of a node that does no work, and reports every change of them."""

    def __init__(self, node_id: str, *, dram_mib: int, kv_mib: int) -> None:
        self.node_id = node_id
        self.address = ""
        self.script = Script()
        self.instances: dict[str, pb.Instance] = {}
        self.copies: dict[tuple[str, int], pb.CheckpointCopy] = {}
        self.links: list[pb.LinkObservation] = [
            _link(pb.TIER_REMOTE, pb.TIER_SSD, 100 * MIB),
            _link(pb.TIER_SSD, pb.TIER_DRAM, 1000 * MIB),
        ]
        self.init_seconds: float | None = 0.01
        self.revision = 0
        self.resyncs = 0
        self.lease_seconds = 0.0
        self.leaving = False
        self.zone = ""
        self.engines: dict[str, bool] = {}
        """Whether each is ready. Empty: a node of an earlier version."""
        self.together = 1
        """Devices of which one instance may have several."""
        self.memory: pb.NodeMemory | None = None
        """None: it does not tell."""
        self.silent = False
        """Sends nothing more, not even heartbeats."""
        self._dram, self._kv = dram_mib * MIB, kv_mib * MIB
        self._outbox: Outbox = asyncio.Queue()
        self._tasks: list[asyncio.Task[None]] = []

    # --- the stream ---------------------------------------------------------------------------

    def begin_reports(self, control_address: str) -> None:
        self._channel = rpc.channel(control_address)
        self._tasks = [
            asyncio.create_task(self._report(), name=f"{self.node_id} reports"),
            asyncio.create_task(self._beat(), name=f"{self.node_id} beats"),
        ]

    async def leave(self) -> None:
        """Stops reporting, and goes on serving."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._channel.close(grace=None)

    async def _report(self) -> None:
        stub = FleetServiceStub(self._channel)
        while True:
            outbox = self._outbox = asyncio.Queue()
            self.send_full()
            try:
                async with sent(stub.Report(), _messages(outbox)) as call:
                    await self._follow(call)
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.05)

    async def _follow(self, call: Any) -> None:
        async for response in call:
            if response.HasField("resync"):
                self.resyncs += 1
                self.send_full()
            else:
                self.lease_seconds = response.ack.lease.ToNanoseconds() / 1e9

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep((self.lease_seconds or 0.3) / 3)
            self._send(heartbeat=fleet_pb.Heartbeat())

    def _send(self, **report: Any) -> None:
        if "heartbeat" not in report:
            self.revision += 1
        if not self.silent:
            message = fleet_pb.ReportRequest(node_id=self.node_id, revision=self.revision, **report)
            self._outbox.put_nowait(message)

    # --- what is reported ---------------------------------------------------------------------

    def send_full(self) -> None:
        node = self._node()
        node.copies.extend(self.copies.values())
        self._send(full=fleet_pb.FullReport(node=node, instances=self.instances.values()))

    def send_delta(
        self, instances: Iterable[pb.Instance] = (), copies: Iterable[pb.CheckpointCopy] = ()
    ) -> None:
        delta = fleet_pb.DeltaReport(node=self._node(), instances=instances, copies=copies)
        self._send(delta=delta)

    def tell_kept(self, saved: dict[int, float], gone: Iterable[int] = ()) -> None:
        """Reports what is kept of prompts, by their names."""
        seconds = saved.values()
        kept = fleet_pb.KeptPrefixes(names=saved, saved_seconds=seconds, gone=gone)
        self._send(delta=fleet_pb.DeltaReport(node=self._node(), kept=kept))

    def _node(self) -> pb.Node:
        node = pb.Node(
            node_id=self.node_id,
            leaving=self.leaving,
            max_tensor_parallel=self.together,
            address=self.address,
            zone=self.zone,
            host="fake",
            tiers=[
                pb.TierUsage(tier=pb.TIER_SSD, capacity_bytes=1024 * MIB),
                pb.TierUsage(tier=pb.TIER_DRAM, capacity_bytes=self._dram),
            ],
            links=self.links,
            kv_capacity_bytes=self._kv,
            memory=self.memory,
            engines=[pb.NodeEngine(name=name, ready=ready) for name, ready in self.engines.items()],
        )
        if self.init_seconds is not None:
            node.init_time.FromNanoseconds(int(self.init_seconds * 1e9))
        return node

    def set_state(self, instance: pb.Instance, state: pb.InstanceState.ValueType) -> None:
        """Changes an instance's state, and reports it."""
        instance.state = state
        if state == pb.INSTANCE_STATE_GONE:
            self.instances.pop(instance.instance_id, None)
        held = [one.digest for one in self.instances.values()]
        changed = []
        for (digest, tier), copy in self.copies.items():
            leased = (tier != pb.TIER_SSD and digest in held) or bool(copy.holds)
            if copy.leased != leased:
                copy.leased = leased
                changed.append(copy)
        self.send_delta([instance], changed)

    def shrink(self, *, dram_mib: int) -> None:
        """Comes to have less memory for weights, and reports it."""
        self._dram = dram_mib * MIB
        self.send_delta()

    def add_copy(self, source: str, tier: pb.Tier.ValueType) -> str:
        """Makes a whole copy of a source's checkpoint known, and returns its digest."""
        digest = f"digest-of-{source}"
        size = self.script.model.size_bytes
        copy = pb.CheckpointCopy(
            digest=digest, tier=tier, size_bytes=size, resident_bytes=size, sources=[source]
        )
        if before := self.copies.get((digest, tier)):
            copy.leased = before.leased
            copy.holds.extend(before.holds)
        self.copies[digest, tier] = copy
        self.send_delta(copies=[copy])
        return digest

    def drop_copy(self, digest: str, tier: pb.Tier.ValueType) -> None:
        """Forgets a copy, and reports it."""
        del self.copies[digest, tier]
        self.send_delta(copies=[pb.CheckpointCopy(digest=digest, tier=tier)])

    def hold(self, request: node_pb.PromoteRequest, digest: str) -> None:
        hold = pb.Hold(hold_id=request.hold_id)
        if request.HasField("hold_ttl"):
            hold.expires_at.FromNanoseconds(time.time_ns() + request.hold_ttl.ToNanoseconds())
        self.drop_hold(request.hold_id)
        copy = self.copies[digest, request.tier]
        copy.holds.append(hold)
        copy.leased = True
        self.send_delta(copies=[copy])

    def drop_hold(self, hold_id: str) -> None:
        for copy in self.copies.values():
            kept = [hold for hold in copy.holds if hold.hold_id != hold_id]
            if len(kept) < len(copy.holds):
                del copy.holds[:]
                copy.holds.extend(kept)
                copy.leased = bool(kept)
                self.send_delta(copies=[copy])

    def holds(self) -> dict[str, tuple[str, int]]:
        """The digest and the tier of what is held, by the hold's id."""
        return {
            hold.hold_id: (digest, tier)
            for (digest, tier), copy in self.copies.items()
            for hold in copy.holds
        }


async def _messages(outbox: Outbox) -> AsyncIterator[fleet_pb.ReportRequest]:
    while True:
        yield await outbox.get()


def _link(
    from_tier: pb.Tier.ValueType, to_tier: pb.Tier.ValueType, bandwidth: float
) -> pb.LinkObservation:
    return pb.LinkObservation(from_tier=from_tier, to_tier=to_tier, bytes_per_second=bandwidth)
