"""The control plane's servicers: each method parses, calls and translates."""

from collections.abc import AsyncIterator
from typing import Any

from serverlessllm.v1 import cluster_service_pb2 as cluster_pb
from serverlessllm.v1 import deployment_service_pb2 as deployment_pb
from serverlessllm.v1 import fleet_service_pb2 as fleet_pb
from serverlessllm.v1 import inference_service_pb2 as inference_pb
from serverlessllm.v1.cluster_service_pb2_grpc import ClusterServiceServicer
from serverlessllm.v1.deployment_service_pb2_grpc import DeploymentServiceServicer
from serverlessllm.v1.fleet_service_pb2_grpc import FleetServiceServicer
from serverlessllm.v1.inference_service_pb2_grpc import InferenceServiceServicer

from sllm.control import wire
from sllm.control.control_plane import ControlPlane
from sllm.control.fleet import Report
from sllm.control.membership import Answer
from sllm.control.pages import page_of


class DeploymentServicer(DeploymentServiceServicer):
    """What should exist."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane

    async def Deploy(
        self, request: deployment_pb.DeployRequest, context: Any
    ) -> deployment_pb.DeployResponse:
        """Creates a deployment, or changes its policy."""
        answer = await self._plane.deploy(wire.deployment_spec(request), wire.call(request))
        return deployment_pb.DeployResponse.FromString(answer)

    async def GetDeployment(
        self, request: deployment_pb.GetDeploymentRequest, context: Any
    ) -> deployment_pb.GetDeploymentResponse:
        """Tells how one is doing."""
        status = self._plane.state.status(request.name)
        return deployment_pb.GetDeploymentResponse(deployment=wire.deployment_message(status))

    async def ListDeployments(
        self, request: deployment_pb.ListDeploymentsRequest, context: Any
    ) -> deployment_pb.ListDeploymentsResponse:
        """Tells how all are doing, page by page."""
        state = self._plane.state
        page = page_of(state.deployments, request.page_size, request.page_token)
        messages = [wire.deployment_message(state.status(name)) for name in page.keys]
        return deployment_pb.ListDeploymentsResponse(
            deployments=messages, next_page_token=page.next_token
        )

    async def DeleteDeployment(
        self, request: deployment_pb.DeleteDeploymentRequest, context: Any
    ) -> deployment_pb.DeleteDeploymentResponse:
        """Ends one."""
        await self._plane.delete(request.name, wire.call(request))
        return deployment_pb.DeleteDeploymentResponse()

    async def WatchDeployment(
        self, request: deployment_pb.WatchDeploymentRequest, context: Any
    ) -> AsyncIterator[deployment_pb.WatchDeploymentResponse]:
        """Tells how one is doing, again and again."""
        async for status in self._plane.watch(request.name):
            message = wire.deployment_message(status)
            yield deployment_pb.WatchDeploymentResponse(deployment=message)


class InferenceServicer(InferenceServiceServicer):
    """Token streams."""

    def __init__(self, plane: ControlPlane) -> None:
        self._router = plane.router

    async def Generate(
        self, request: inference_pb.GenerateRequest, context: Any
    ) -> AsyncIterator[inference_pb.GenerateResponse]:
        """Serves a request from its queueing to its end."""
        ticket = self._router.take(request, context.time_remaining())
        # A caller may leave while nothing here is running: this stops the node all the same.
        context.add_done_callback(lambda _: self._router.drop(ticket))
        async for event in self._router.events(ticket):
            yield event

    async def Cancel(
        self, request: inference_pb.CancelRequest, context: Any
    ) -> inference_pb.CancelResponse:
        """Ends a request from outside its stream."""
        self._router.cancel(request.request_id)
        return inference_pb.CancelResponse()


class ClusterServicer(ClusterServiceServicer):
    """The cluster as it is."""

    def __init__(self, plane: ControlPlane) -> None:
        self._fleet = plane.state.fleet

    async def ListNodes(
        self, request: cluster_pb.ListNodesRequest, context: Any
    ) -> cluster_pb.ListNodesResponse:
        """Lists nodes, page by page."""
        page = page_of(self._fleet.nodes, request.page_size, request.page_token)
        messages = [wire.node_message(self._fleet.nodes[node_id]) for node_id in page.keys]
        return cluster_pb.ListNodesResponse(nodes=messages, next_page_token=page.next_token)

    async def ListInstances(
        self, request: cluster_pb.ListInstancesRequest, context: Any
    ) -> cluster_pb.ListInstancesResponse:
        """Lists instances, page by page."""
        instances = {
            one.instance_id: one
            for one in self._fleet.known_instances()
            if request.deployment in ("", one.deployment)
        }
        page = page_of(instances, request.page_size, request.page_token)
        messages = [wire.instance_message(instances[key]) for key in page.keys]
        return cluster_pb.ListInstancesResponse(instances=messages, next_page_token=page.next_token)


class FleetServicer(FleetServiceServicer):
    """What nodes hold and do."""

    def __init__(self, plane: ControlPlane) -> None:
        self._membership = plane.membership
        self._lease = wire.duration(plane.config.lease_seconds)

    async def Report(
        self, request_iterator: AsyncIterator[fleet_pb.ReportRequest], context: Any
    ) -> AsyncIterator[fleet_pb.ReportResponse]:
        """Takes in a node's reports for as long as it sends them."""
        stream = self._membership.open()
        # However the call ends, and whatever is running here then, the node is no member any more.
        context.add_done_callback(lambda _: self._membership.leave(stream))
        reports = _reports(request_iterator)
        async for answer, revision in self._membership.follow(stream, reports):
            if answer is Answer.ACK:
                ack = fleet_pb.Ack(revision=revision, lease=self._lease)
                yield fleet_pb.ReportResponse(ack=ack)
            elif answer is Answer.RESYNC:
                yield fleet_pb.ReportResponse(resync=fleet_pb.Resync())


async def _reports(requests: AsyncIterator[fleet_pb.ReportRequest]) -> AsyncIterator[Report]:
    async for request in requests:
        yield wire.report(request)
