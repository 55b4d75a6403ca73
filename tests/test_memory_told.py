"""What instances take of a node's memory: from its report to what operators see."""

from types import SimpleNamespace
from typing import Any

from serverlessllm.v1 import fleet_service_pb2 as fleet_pb
from serverlessllm.v1 import types_pb2 as pb

from sllm import Instance, KvShare, Node, NodeMemory
from sllm.cli.listings import instances_table, nodes_table
from sllm.client.wire import listings
from sllm.clock import ManualClock
from sllm.control.cluster.nodes import NodeView
from sllm.control.cluster.tiers import Copies
from sllm.control.types.reports import Full
from sllm.control.wire import fleet, reports
from sllm.node.api.reports import instance_message
from sllm.node.device import kv_sharing
from sllm.node.device.kv_shares import CacheUse
from sllm.node.instances import instance as instances
from sllm.node.instances.running import Running
from sllm.node.instances.spec import EngineSpec, InstanceSpec
from sllm.node.instances.watchdog import Patience
from sllm.node.tiers.types import Tier
from tests.cli.screen import rows

MIB = 1 << 20
MEMORY = NodeMemory(1024 * MIB, 200 * MIB, 94 * MIB, 64 * MIB, 256)


def told(memory: NodeMemory | None) -> tuple[Node, Instance]:
    """What a client is told of a node that has reported so, and of its only instance."""
    node = pb.Node(address="host:1")
    if memory:
        node.memory.total_bytes = memory.total_bytes
        node.memory.capacity_bytes = memory.capacity_bytes
        node.memory.used_bytes = memory.used_bytes
        node.memory.instance_bytes = memory.instance_bytes
        node.memory.max_instances = memory.max_instances
    ready = pb.INSTANCE_STATE_READY
    own = 30 * MIB if memory else 0
    instance = pb.Instance(instance_id="i", deployment="d", state=ready, own_bytes=own)
    full = fleet_pb.FullReport(node=node, instances=[instance])
    report = reports.report(fleet_pb.ReportRequest(node_id="n", revision=1, full=full))
    assert isinstance(report.body, Full)
    view = NodeView(report.body.facts, Copies(), {})
    one = fleet.instance_message(report.body.instances[0])
    return listings.node(fleet.node_message(view)), listings.instance(one)


def test_operators_see_what_the_node_has_reported() -> None:
    node, instance = told(MEMORY)
    assert node.memory == MEMORY
    assert instance.own_bytes == 30 * MIB
    assert told(None)[0].memory is None


def test_listings_show_it() -> None:
    for memory, share, own in ((MEMORY, "94.0 MiB/200.0 MiB", "30.0 MiB"), (None, "-", "-")):
        node, instance = told(memory)
        heading, row = rows(nodes_table([node]))
        assert row[heading.index("INSTANCES")] == share
        heading, row = rows(instances_table([instance], 0.0))
        assert row[heading.index("OWN")] == own


def caching(running: int, *, follows: bool = True) -> Instance:
    """What a client is told of an instance with 4 MiB of KV cache, which was started with 1."""
    spec = InstanceSpec("i", "d", "/m", EngineSpec("vllm", None, None, None), kv_bytes=MIB)
    one = instances.Instance(spec, ManualClock(), lambda _: None, Patience())
    worker: Any = SimpleNamespace(running=running, waiting=0, pid=1)
    share = kv_sharing.KvShare(MIB, 4 * MIB)
    if follows:
        share.follow(worker)
    share.bytes, share.use = 4 * MIB, CacheUse(4 * MIB, 2 * MIB, 2 * MIB)
    one.running = Running(worker, "e", 0, Tier.DRAM, 0, worker, 0, "", kv_share=share)
    reported = reports.instance(instance_message(one, "n"), "n")
    return listings.instance(fleet.instance_message(reported))


def test_what_a_kv_cache_has_of_shared_memory_is_told_and_shown() -> None:
    assert caching(3).kv_share == KvShare(4 * MIB, 2 * MIB)
    assert caching(0).kv_share == KvShare(4 * MIB, 0), "nobody looks at those that are at rest"
    assert caching(3, follows=False).kv_share is None
    heading, row, *more = rows(instances_table([caching(3)], 0.0))
    assert row[heading.index("KV CACHE")] == "2.0 MiB/4.0 MiB"
    assert more[0][-1] == "began with 1.0 MiB"
