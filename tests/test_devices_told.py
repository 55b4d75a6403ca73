"""A node's devices, from its report to what operators see."""

from serverlessllm.v1 import fleet_service_pb2 as fleet_pb
from serverlessllm.v1 import types_pb2 as pb

from sllm.cli.listings import devices_table
from sllm.cli.top import nodes_part
from sllm.client.types.nodes import Device, Node
from sllm.client.wire import listings
from sllm.control.cluster.nodes import NodeView
from sllm.control.cluster.tiers import Copies, Tier
from sllm.control.types.reports import Full
from sllm.control.wire import fleet, reports
from tests.cli.screen import rows

GIB = 1 << 30
DEVICES = (
    Device(
        0, "NVIDIA H100 80GB HBM3", "GPU-0", 80 * GIB, 30 * GIB, 60 * GIB, 45 * GIB, 16 * GIB, 0
    ),
    Device(
        1,
        "H100",
        "GPU-1",
        80 * GIB,
        79 * GIB,
        60 * GIB,
        0,
        16 * GIB,
        5 * GIB,
        reserved_bytes=7 * GIB,
        idle_bytes=3 * GIB,
    ),
)


def told(*devices: Device) -> Node:
    """What a client is told of a node that has reported devices."""
    node = pb.Node(address="host:1")
    for one in devices:
        node.devices.add(
            index=one.index,
            name=one.name,
            uuid=one.uuid,
            total_bytes=one.total_bytes,
            free_bytes=one.free_bytes,
            weights_capacity_bytes=one.weights_capacity_bytes,
            weights_used_bytes=one.weights_used_bytes,
            kv_capacity_bytes=one.kv_capacity_bytes,
            kv_used_bytes=one.kv_used_bytes,
            reserved_bytes=one.reserved_bytes,
            idle_bytes=one.idle_bytes,
        )
    node.tiers.add(tier=pb.TIER_DEVICE, capacity_bytes=120 * GIB, used_bytes=45 * GIB)
    report = reports.report(
        fleet_pb.ReportRequest(node_id="n", revision=1, full=fleet_pb.FullReport(node=node))
    )
    assert isinstance(report.body, Full)
    view = NodeView(report.body.facts, Copies(), {})
    assert view.weights_tier is Tier.DEVICE
    return listings.node(fleet.node_message(view))


def test_operators_see_what_the_node_has_reported() -> None:
    assert told(*DEVICES).devices == DEVICES
    assert told().devices == ()


def test_each_device_has_a_row() -> None:
    heading, *found = rows(devices_table([told(*DEVICES)]))
    assert heading[:4] == ["NODE", "DEVICE", "MODEL", "FREE"]
    assert [row[1] for row in found] == ["0", "1"]
    assert [row[3] for row in found] == ["30.0 GiB", "79.0 GiB"]
    assert [row[5] for row in found] == ["45.0 GiB/60.0 GiB", "0 B/60.0 GiB"]
    assert [row[6:8] for row in found] == [["0 B", "0 B"], ["3.0 GiB", "7.0 GiB"]]


def test_top_shows_the_device_tier_where_there_is_one() -> None:
    assert "DEVICE" in rows(nodes_part([told(*DEVICES)]))[0]
