"""FleetService: what nodes hold and do, as they report it."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from serverlessllm.v1 import fleet_service_pb2 as pb
from serverlessllm.v1.fleet_service_pb2_grpc import FleetServiceServicer

from sllm.control.control_plane import ControlPlane
from sllm.control.orchestration.membership import Answer
from sllm.control.types.reports import Report
from sllm.control.wire import common, reports


class FleetServicer(FleetServiceServicer):
    """Each node has one stream here, for as long as it is a member."""

    def __init__(self, plane: ControlPlane) -> None:
        self._membership = plane.membership
        self._lease = common.duration(plane.config.lease_seconds)

    async def Report(
        self, request_iterator: AsyncIterator[pb.ReportRequest], context: Any
    ) -> AsyncIterator[pb.ReportResponse]:
        """Takes in a node's reports for as long as it sends them."""
        stream = self._membership.open()
        # However the call ends, and whatever is running here then, the node is no member any more.
        context.add_done_callback(lambda _: self._membership.leave(stream))
        reports = _reports(request_iterator)
        async with aclosing(self._membership.follow(stream, reports)) as answers:
            async for answer, revision in answers:
                if answer is Answer.ACK:
                    ack = pb.Ack(revision=revision, lease=self._lease)
                    yield pb.ReportResponse(ack=ack)
                elif answer is Answer.RESYNC:
                    yield pb.ReportResponse(resync=pb.Resync())


async def _reports(requests: AsyncIterator[pb.ReportRequest]) -> AsyncIterator[Report]:
    async for request in requests:
        yield reports.report(request)
