"""The reporter against a real FleetService on a port of its own."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import structlog
from serverlessllm.v1 import fleet_service_pb2 as pb
from serverlessllm.v1 import types_pb2 as types_pb
from serverlessllm.v1.fleet_service_pb2_grpc import (
    FleetServiceServicer,
    add_FleetServiceServicer_to_server,
)

from sllm import rpc
from sllm.clock import MonotonicClock
from sllm.node.api.reporter import Reporter
from sllm.node.config import NodeConfig
from sllm.node.device.interface import DeviceInfo
from sllm.node.instances.init_times import InitKey, InitTime, InitTimes
from sllm.node.instances.memory import MAX_INSTANCES, NodeMemory
from sllm.node.instances.unmade import Unmade
from sllm.node.instances.zygotes import EngineState
from sllm.node.store.holds import Hold
from sllm.node.tiers.types import Copy, Tier
from sllm.own_memory import Taken
from tests.support import assert_eventually


class Fleet(FleetServiceServicer):
    """Records what it is told; answers what it is made to answer."""

    def __init__(self) -> None:
        self.messages: list[pb.ReportRequest] = []
        self.streams = 0
        self.resync = False
        self.hang_up = False

    async def Report(
        self, request_iterator: AsyncIterator[pb.ReportRequest], context: Any
    ) -> AsyncIterator[pb.ReportResponse]:
        self.streams += 1
        async for message in request_iterator:
            self.messages.append(message)
            if self.hang_up:
                self.hang_up = False
                return
            if self.resync:
                self.resync = False
                yield pb.ReportResponse(resync=pb.Resync())
                continue
            ack = pb.Ack(revision=message.revision)
            ack.lease.FromMilliseconds(300)
            yield pb.ReportResponse(ack=ack)

    def kinds(self) -> list[str | None]:
        return [message.WhichOneof("report") for message in self.messages]


@dataclass
class Devices:
    """What a node's kernels run on."""

    infos_now: tuple[DeviceInfo, ...] = ()
    kv_capacity_bytes: int = 0
    max_together: int = 1

    def infos(self) -> tuple[DeviceInfo, ...]:
        return self.infos_now


@dataclass
class Holds:
    """What is pinned, by digest."""

    by_digest: dict[str, Hold] = field(default_factory=dict)

    def on(self, digest: str, tier: Tier) -> tuple[Hold, ...]:
        return tuple(hold for key, hold in self.by_digest.items() if key == digest)


@dataclass
class Contents:
    """What lies on which tier, and what holds it there."""

    held: list[Copy] = field(default_factory=list)
    holds: Holds = field(default_factory=Holds)

    def copies(self) -> tuple[Copy, ...]:
        return tuple(self.held)

    def usage(self) -> tuple[()]:
        return ()

    def links(self) -> tuple[()]:
        return ()


@dataclass
class Books:
    """What instances take."""

    kv_used_bytes: int = 0
    memory: NodeMemory = field(default_factory=lambda: NodeMemory(100, 50, 10))
    copied: dict[str, int] = field(default_factory=dict)
    """Over weights that were made ready, by what they were made of."""

    def copied_over(self, made_of: str, made_for: str) -> int | None:
        return self.copied.get(made_of)


@dataclass
class Instances:
    """What runs."""

    books: Books = field(default_factory=Books)
    by_id: dict[str, Any] = field(default_factory=dict)
    init_times: InitTimes = field(default_factory=InitTimes)
    unmade_forms: dict[Unmade, str] = field(default_factory=dict)

    @property
    def own_books(self) -> Books:
        return self.books


class Node:
    """A node's side of the reporter: contents that change, and who wants to know."""

    def __init__(self) -> None:
        self.devices = Devices()
        self.config = NodeConfig(control_address="", directory=Path("/nowhere"))
        self.instances = Instances()
        self.contents = Contents()
        self.leaving = False
        self.zygotes = SimpleNamespace(states=(EngineState("transformers", ready=True),))
        self.kept: dict[int, float] = {}
        prefixes = SimpleNamespace(saved=lambda: self.kept)
        self.store = SimpleNamespace(kept=SimpleNamespace(prefixes=prefixes))
        self._watchers: list[Any] = []

    def subscribe(self, watcher: Any) -> None:
        self._watchers.append(watcher)

    def hold(self, *digests: str) -> None:
        self.contents.held = [
            Copy(digest, Tier.SSD, size_bytes=8, resident_bytes=8, sources=(), leased=False)
            for digest in digests
        ]
        self.change()

    def change(self) -> None:
        for watcher in self._watchers:
            watcher()


@asynccontextmanager
async def reporting(fleet: Fleet, node: Node) -> AsyncIterator[None]:
    server = rpc.Server()
    add_FleetServiceServicer_to_server(fleet, server.grpc)
    port = await server.start("127.0.0.1:0", [pb.DESCRIPTOR.services_by_name["FleetService"]])
    async with rpc.channel(f"127.0.0.1:{port}") as channel:
        reporter = Reporter(node, "n1", "host:1", channel, MonotonicClock())  # type: ignore[arg-type]  # has what it asks for
        task = asyncio.create_task(reporter.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await server.stop(0)


async def test_everything_first_and_then_what_changes() -> None:
    fleet, node = Fleet(), Node()
    node.hold("a", "b")
    async with reporting(fleet, node):
        await assert_eventually(lambda: fleet.kinds()[:1] == ["full"])
        assert [copy.digest for copy in fleet.messages[0].full.node.copies] == ["a", "b"]
        node.hold("b", "c")
        await assert_eventually(lambda: "delta" in fleet.kinds())

    deltas = [message for message in fleet.messages if message.HasField("delta")]
    changed = {copy.digest: copy.resident_bytes for copy in deltas[0].delta.copies}
    assert changed == {"c": 8, "a": 0}
    assert [deltas[0].revision, fleet.messages[0].revision] == [2, 1]


async def test_one_part_that_cannot_be_written_silences_nothing_else() -> None:
    fleet, node = Fleet(), Node()
    node.hold("a", "b", "c")
    node.contents.holds = Holds({"b": Hold("h", "b", Tier.SSD, expires_at=3e11)})
    with structlog.testing.capture_logs() as logs:
        async with reporting(fleet, node):
            await assert_eventually(lambda: fleet.kinds()[:1] == ["full"])
            await assert_eventually(lambda: "heartbeat" in fleet.kinds())
    assert [copy.digest for copy in fleet.messages[0].full.node.copies] == ["a", "c"]
    assert fleet.streams == 1
    told = [entry for entry in logs if entry["event"] == "node.part_not_reported"]
    assert "'b'" in told[0]["part"]


async def test_what_instances_take_of_the_memory_is_told() -> None:
    fleet, node = Fleet(), Node()
    async with reporting(fleet, node):
        await assert_eventually(lambda: fleet.kinds()[:1] == ["full"])
        assert fleet.messages[0].full.node.memory == types_pb.NodeMemory(
            total_bytes=100,
            capacity_bytes=50,
            instance_bytes=10,
            max_instances=MAX_INSTANCES,
        )
        node.instances.books.memory = NodeMemory(100, 50, 10, (Taken("a", 20), Taken("b", 0)))
        node.change()
        await assert_eventually(lambda: "delta" in fleet.kinds())
    deltas = [message for message in fleet.messages if message.HasField("delta")]
    assert deltas[0].delta.node.memory.used_bytes == 40


async def test_what_instances_over_ready_made_weights_copy_is_told_with_these() -> None:
    fleet, node = Fleet(), Node()
    made = Copy("ready", Tier.SSD, size_bytes=8, resident_bytes=8, sources=(), leased=False)
    node.contents.held = [replace(made, made_of="d", made_for="vllm")]
    node.instances.unmade_forms = {Unmade("e", "vllm"): "no"}
    async with reporting(fleet, node):
        await assert_eventually(lambda: fleet.kinds()[:1] == ["full"])
        node.instances.books.copied = {"d": 7}
        node.change()
        await assert_eventually(lambda: "delta" in fleet.kinds())
    full, delta = (fleet.messages[fleet.kinds().index(kind)] for kind in ("full", "delta"))
    assert not full.full.node.copies[0].HasField("private_bytes")
    assert [one.problem for one in full.full.node.unmade_forms] == ["no"]
    assert [one.private_bytes for one in delta.delta.copies] == [7]


async def test_every_device_is_told_of_and_what_of_it_is_free() -> None:
    fleet, node = Fleet(), Node()
    device = DeviceInfo(0, "GPU", "GPU-0", 80, 70, 60, 10, 8, 2, 4, 3)
    node.devices.infos_now = (device, replace(device, index=1))
    async with reporting(fleet, node):
        await assert_eventually(lambda: fleet.kinds()[:1] == ["full"])
        told = fleet.messages[0].full.node.devices
        assert [(one.index, one.name, one.free_bytes, one.reserved_bytes) for one in told] == [
            (0, "GPU", 70, 4),
            (1, "GPU", 70, 4),
        ]
        node.devices.infos_now = (replace(device, free_bytes=50),)
        node.change()
        await assert_eventually(lambda: "delta" in fleet.kinds())
    deltas = [message for message in fleet.messages if message.HasField("delta")]
    assert [one.free_bytes for one in deltas[0].delta.node.devices] == [50]


async def test_what_is_kept_of_prompts_is_told_as_far_as_it_has_changed() -> None:
    fleet, node = Fleet(), Node()
    node.kept = {1: 0.5, 2: 1.0}
    async with reporting(fleet, node):
        await assert_eventually(lambda: fleet.kinds()[:1] == ["full"])
        node.kept = {2: 1.0, 3: 2.0}
        node.change()
        await assert_eventually(lambda: "delta" in fleet.kinds())
    assert fleet.messages[0].full.kept == pb.KeptPrefixes(names=[1, 2], saved_seconds=[0.5, 1.0])
    (delta,) = (one.delta for one in fleet.messages if one.HasField("delta"))
    assert delta.kept == pb.KeptPrefixes(names=[3], saved_seconds=[2.0], gone=[1])


async def test_what_starts_took_is_told_once_and_when_it_changes() -> None:
    fleet, node = Fleet(), Node()
    node.instances.init_times.observe(
        InitKey("a", "transformers"), InitTime(8, prepare=0.5, attach=1.0)
    )
    async with reporting(fleet, node):
        await assert_eventually(lambda: fleet.kinds()[:1] == ["full"])
        node.instances.init_times.observe(
            InitKey("b", "transformers"), InitTime(9, prepare=0.25, attach=2.0)
        )
        node.hold("b")
        await assert_eventually(lambda: "delta" in fleet.kinds())

    (first,) = fleet.messages[0].full.node.init_observations
    assert (first.digest, first.size_bytes, first.attach.seconds) == ("a", 8, 1)
    deltas = [message.delta for message in fleet.messages if message.HasField("delta")]
    assert [one.digest for one in deltas[0].init_observations] == ["b"]


async def test_without_changes_heartbeats_keep_the_lease() -> None:
    fleet = Fleet()
    async with reporting(fleet, Node()):
        await assert_eventually(lambda: fleet.kinds().count("heartbeat") >= 3)
    assert fleet.kinds().count("full") == 1
    assert {message.revision for message in fleet.messages} == {1}


async def test_a_resync_is_answered_in_full() -> None:
    fleet, node = Fleet(), Node()
    async with reporting(fleet, node):
        await assert_eventually(lambda: fleet.kinds()[:1] == ["full"])
        fleet.resync = True
        node.hold("a")
        await assert_eventually(lambda: fleet.kinds().count("full") == 2)
    full = [message for message in fleet.messages if message.HasField("full")][-1]
    assert [copy.digest for copy in full.full.node.copies] == ["a"]


async def test_a_stream_that_ends_is_opened_again_with_everything() -> None:
    fleet, node = Fleet(), Node()
    fleet.hang_up = True
    async with reporting(fleet, node):
        await assert_eventually(lambda: fleet.streams == 2 and fleet.kinds().count("full") == 2)


async def test_a_report_that_cannot_be_made_is_told_and_made_anew() -> None:
    """As by a fault in what is reported: the node would be there, and unreported for good."""
    fleet, node = Fleet(), Node()
    async with reporting(fleet, node):
        await assert_eventually(lambda: fleet.kinds()[:1] == ["full"])
        with structlog.testing.capture_logs() as logs:
            broken, node.contents.holds = node.contents.holds, None  # type: ignore[assignment]
            node.hold("a")
            await assert_eventually(lambda: logs)
            node.contents.holds = broken
            await assert_eventually(lambda: fleet.kinds().count("full") == 2)
    assert logs[0]["event"] == "node.report_failed"
    full = [message for message in fleet.messages if message.HasField("full")][-1]
    assert [copy.digest for copy in full.full.node.copies] == ["a"]
