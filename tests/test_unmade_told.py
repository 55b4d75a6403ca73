"""Why weights were not made ready: from a node's report to what operators see."""

from serverlessllm.v1 import fleet_service_pb2 as fleet_pb
from serverlessllm.v1 import types_pb2 as pb

from sllm.cli.listings import problems
from sllm.client.wire import listings
from sllm.control.cluster.nodes import NodeView
from sllm.control.cluster.tiers import Copies
from sllm.control.types.reports import Full
from sllm.control.wire import fleet, reports

WHY = "its kernels read weights as they are published"


def test_operators_see_why_there_is_no_form() -> None:
    copy = pb.CheckpointCopy(digest="d", tier=pb.TIER_SSD, size_bytes=5, resident_bytes=5)
    copy.sources.append("file:///m")
    unmade = pb.UnmadeForm(digest="d", made_for="vllm:tp=2", problem=WHY)
    node = pb.Node(address="host:1", copies=[copy], unmade_forms=[unmade])
    full = fleet_pb.FullReport(node=node)
    report = reports.report(fleet_pb.ReportRequest(node_id="n", revision=1, full=full))
    assert isinstance(report.body, Full)
    view = NodeView(report.body.facts, Copies.of(report.body.copies), {})
    told = listings.node(fleet.node_message(view))
    assert [(one.made_for, one.problem) for one in told.unmade_forms] == [("vllm:tp=2", WHY)]
    assert problems([told]) == [f"n, file:///m: not made ready for vllm:tp=2: {WHY}"]
