"""What no node should report: refused as a whole, by type, and nothing of it is believed."""

import math
from collections.abc import Callable

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from serverlessllm.v1 import fleet_service_pb2 as fleet_pb
from serverlessllm.v1 import types_pb2 as pb
from serverlessllm.v1.fleet_service_pb2_grpc import FleetServiceStub

from sllm import errors, rpc
from tests.control.clusters import Cluster

YEAR_10000 = Timestamp(seconds=253_402_300_800)


def _copy(one: pb.CheckpointCopy) -> Callable[[fleet_pb.FullReport], None]:
    return lambda full: full.node.copies.append(one)


def _instance(one: pb.Instance) -> Callable[[fleet_pb.FullReport], None]:
    return lambda full: full.instances.append(one)


def _link(**fields: float) -> Callable[[fleet_pb.FullReport], None]:
    link = pb.LinkObservation(from_tier=pb.TIER_SSD, to_tier=pb.TIER_DRAM, **fields)  # type: ignore[arg-type]  # by name
    return lambda full: full.node.links.append(link)


READY = pb.INSTANCE_STATE_READY
REPORTS: dict[str, Callable[[fleet_pb.FullReport], None]] = {
    "no address": lambda full: full.node.ClearField("address"),
    "no port": lambda full: setattr(full.node, "address", "localhost"),
    "a tier that is none": lambda full: full.node.tiers.append(pb.TierUsage(tier=-1)),  # type: ignore[arg-type]
    "a copy on an unknown tier": _copy(pb.CheckpointCopy(digest="d", tier=-1)),  # type: ignore[arg-type]
    "a copy on no tier": _copy(pb.CheckpointCopy(digest="d")),
    "a copy of less than nothing": _copy(
        pb.CheckpointCopy(digest="d", tier=pb.TIER_SSD, size_bytes=-1)
    ),
    "a hold that ends after the year 9999": _copy(
        pb.CheckpointCopy(
            digest="d", tier=pb.TIER_SSD, holds=[pb.Hold(hold_id="h", expires_at=YEAR_10000)]
        )
    ),
    "an unknown state": _instance(pb.Instance(instance_id="i", state=99)),  # type: ignore[arg-type]
    "no state": _instance(pb.Instance(instance_id="i")),
    "a start after the year 9999": _instance(
        pb.Instance(instance_id="i", state=READY, started_at=YEAR_10000)
    ),
    "a link from nowhere": lambda full: full.node.links.append(pb.LinkObservation()),
    "a speed that is no number": _link(bytes_per_second=math.nan),
    "a speed without end": _link(bytes_per_second=math.inf),
    "a negative queue": _link(queued_bytes=-1),
    "more memory than there is": lambda full: setattr(full.node, "kv_capacity_bytes", 2**63 - 1),
    "a start of ages": lambda full: full.node.init_time.CopyFrom(Duration(seconds=10**11)),
}


async def _reported(cluster: Cluster, request: fleet_pb.ReportRequest) -> fleet_pb.ReportResponse:
    async with rpc.channel(cluster.address) as channel:
        call = FleetServiceStub(channel).Report()
        with rpc.typed_errors():
            await call.write(request)
            response = await call.read()
            assert isinstance(response, fleet_pb.ReportResponse)
            return response


def _full() -> fleet_pb.FullReport:
    return fleet_pb.FullReport(node=pb.Node(node_id="odd", address="127.0.0.1:1"))


async def test_an_ordinary_report_is_believed(cluster: Cluster) -> None:
    request = fleet_pb.ReportRequest(node_id="odd", revision=1, full=_full())
    assert (await _reported(cluster, request)).HasField("ack")


async def test_of_a_later_version_what_is_known_here_is_believed(cluster: Cluster) -> None:
    """It may have tiers that nobody here has heard of, such as nodes have of other nodes."""
    full, later = _full(), 99
    full.node.tiers.append(pb.TierUsage(tier=later))  # type: ignore[arg-type]  # as they would
    full.node.tiers.append(pb.TierUsage(tier=pb.TIER_SSD, capacity_bytes=5))
    full.node.links.append(pb.LinkObservation(from_tier=later, to_tier=pb.TIER_SSD))  # type: ignore[arg-type]
    full.node.copies.append(pb.CheckpointCopy(digest="d", tier=later))  # type: ignore[arg-type]
    request = fleet_pb.ReportRequest(node_id="odd", revision=1, full=full)
    assert (await _reported(cluster, request)).HasField("ack")


@pytest.mark.parametrize("what", REPORTS)
async def test_a_report_is_refused(cluster: Cluster, what: str) -> None:
    full = _full()
    REPORTS[what](full)
    with pytest.raises(errors.InvalidArgument):
        await _reported(cluster, fleet_pb.ReportRequest(node_id="odd", revision=1, full=full))
    assert "odd" not in {node.node_id for node in await cluster.caller.nodes()}


@pytest.mark.parametrize("node_id", ["", "x" * 257])
async def test_a_node_has_an_id(cluster: Cluster, node_id: str) -> None:
    with pytest.raises(errors.InvalidArgument, match="node_id"):
        await _reported(cluster, fleet_pb.ReportRequest(node_id=node_id, revision=1, full=_full()))
