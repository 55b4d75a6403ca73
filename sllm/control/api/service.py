"""The control plane's servicers: each method parses, calls and translates."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from serverlessllm.v1 import cluster_service_pb2 as cluster_pb
from serverlessllm.v1 import deployment_service_pb2 as deployment_pb
from serverlessllm.v1 import fleet_service_pb2 as fleet_pb
from serverlessllm.v1 import inference_service_pb2 as inference_pb
from serverlessllm.v1.cluster_service_pb2_grpc import ClusterServiceServicer
from serverlessllm.v1.deployment_service_pb2_grpc import DeploymentServiceServicer
from serverlessllm.v1.fleet_service_pb2_grpc import FleetServiceServicer
from serverlessllm.v1.inference_service_pb2_grpc import InferenceServiceServicer

from sllm.control.api.pagination import page_of
from sllm.control.control_plane import ControlPlane
from sllm.control.orchestration.membership import Answer
from sllm.control.types.reports import Report
from sllm.control.wire import common as wire
from sllm.control.wire import deployments as deployment_wire
from sllm.control.wire import fleet as fleet_wire
from sllm.control.wire import migrations as migration_wire
from sllm.control.wire import operations as operator_wire
from sllm.control.wire import watch as watch_wire


class DeploymentServicer(DeploymentServiceServicer):
    """What should exist."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane

    async def Deploy(
        self, request: deployment_pb.DeployRequest, context: Any
    ) -> deployment_pb.DeployResponse:
        """Creates a deployment, or changes its policy."""
        answer = await self._plane.deploy(deployment_wire.spec(request), wire.call(request))
        return deployment_pb.DeployResponse.FromString(answer)

    async def GetDeployment(
        self, request: deployment_pb.GetDeploymentRequest, context: Any
    ) -> deployment_pb.GetDeploymentResponse:
        """Tells how one is doing."""
        status = self._plane.state.status(request.name)
        return deployment_pb.GetDeploymentResponse(deployment=deployment_wire.message(status))

    async def ListDeployments(
        self, request: deployment_pb.ListDeploymentsRequest, context: Any
    ) -> deployment_pb.ListDeploymentsResponse:
        """Tells how all are doing, page by page."""
        state = self._plane.state
        page = page_of(state.deployments, request.page_size, request.page_token)
        messages = [deployment_wire.message(state.status(name)) for name in page.keys]
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
        async with aclosing(self._plane.watch(request.name)) as statuses:
            async for status in statuses:
                message = deployment_wire.message(status)
                yield deployment_pb.WatchDeploymentResponse(deployment=message)


class InferenceServicer(InferenceServiceServicer):
    """Token streams."""

    def __init__(self, plane: ControlPlane) -> None:
        self._router = plane.router

    async def Generate(
        self, request: inference_pb.GenerateRequest, context: Any
    ) -> AsyncIterator[inference_pb.GenerateResponse]:
        """Serves a request from its queueing to its end."""
        if not request.HasField("resume_from_sequence"):
            await self._router.vacant(request.request_id)
        ticket = self._router.take(request, context.time_remaining())
        # A caller may leave while nothing here is running: this stops the node all the same.
        context.add_done_callback(lambda _: self._router.drop(ticket))
        async with aclosing(self._router.events(ticket)) as events:
            async for event in events:
                yield event

    async def Cancel(
        self, request: inference_pb.CancelRequest, context: Any
    ) -> inference_pb.CancelResponse:
        """Ends a request from outside its stream."""
        await self._router.cancel(request.request_id)
        return inference_pb.CancelResponse()


class ClusterServicer(ClusterServiceServicer):
    """The cluster as it is, and what operators have it do."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane
        self._fleet = plane.state.fleet
        self._migrator = plane.migrator

    async def Migrate(
        self, request: cluster_pb.MigrateRequest, context: Any
    ) -> AsyncIterator[cluster_pb.MigrateResponse]:
        """Has generations go on at another node."""
        ask = migration_wire.migration_ask(request, self._migrator)
        async with aclosing(self._migrator.migrate(ask)) as migration:
            async for news in migration:
                yield migration_wire.migrate_response(news)

    async def ListNodes(
        self, request: cluster_pb.ListNodesRequest, context: Any
    ) -> cluster_pb.ListNodesResponse:
        """Lists nodes, page by page."""
        page = page_of(self._fleet.nodes, request.page_size, request.page_token)
        draining = self._plane.state.draining
        messages = [
            fleet_wire.node_message(self._fleet.nodes[node_id], draining=node_id in draining)
            for node_id in page.keys
        ]
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
        messages = [fleet_wire.instance_message(instances[key]) for key in page.keys]
        return cluster_pb.ListInstancesResponse(instances=messages, next_page_token=page.next_token)

    async def ExplainPlacement(
        self, request: cluster_pb.ExplainPlacementRequest, context: Any
    ) -> cluster_pb.ExplainPlacementResponse:
        """Tells what placement would decide now, and why."""
        return operator_wire.explain_response(self._plane.explain(request.deployment))

    async def Prefetch(
        self, request: cluster_pb.PrefetchRequest, context: Any
    ) -> AsyncIterator[cluster_pb.PrefetchResponse]:
        """Brings a checkpoint up, and keeps it there for a while."""
        ask = operator_wire.prefetch_ask(request)
        async with aclosing(self._plane.prefetching.prefetch(ask, wire.call(request))) as steps:
            async for step in steps:
                yield operator_wire.prefetch_response(step)

    async def Pin(
        self, request: cluster_pb.PinRequest, context: Any
    ) -> AsyncIterator[cluster_pb.PinResponse]:
        """Keeps a checkpoint on a tier of a node."""
        place, ttl = operator_wire.pin_place(request), operator_wire.ttl_of(request)
        async with aclosing(self._plane.pinning.pin(place, ttl, wire.call(request))) as steps:
            async for step in steps:
                yield operator_wire.pin_response(step)

    async def Unpin(
        self, request: cluster_pb.UnpinRequest, context: Any
    ) -> cluster_pb.UnpinResponse:
        """Ends pins."""
        tier, call = operator_wire.unpin_tier(request), wire.call(request)
        pinning = self._plane.pinning
        unpinned = await pinning.unpin(request.deployment, tier, request.node_id, call)
        return operator_wire.unpin_response(unpinned)

    async def ListPins(
        self, request: cluster_pb.ListPinsRequest, context: Any
    ) -> cluster_pb.ListPinsResponse:
        """Lists pins, page by page."""
        pins = self._plane.pinning.pins(request.deployment)
        page = page_of(pins, request.page_size, request.page_token)
        listed = [operator_wire.listed_pin(*pins[key]) for key in page.keys]
        return cluster_pb.ListPinsResponse(pins=listed, next_page_token=page.next_token)

    async def DrainNode(
        self, request: cluster_pb.DrainNodeRequest, context: Any
    ) -> AsyncIterator[cluster_pb.DrainNodeResponse]:
        """Gives a node no new work, and follows what it runs to its end."""
        grace, call = operator_wire.grace_of(request), wire.call(request)
        drains = self._plane.drains
        async with aclosing(drains.drain(request.node_id, grace, request.force, call)) as steps:
            async for progress in steps:
                yield operator_wire.drain_response(progress)
        yield operator_wire.DRAINED

    async def UndrainNode(
        self, request: cluster_pb.UndrainNodeRequest, context: Any
    ) -> cluster_pb.UndrainNodeResponse:
        """Gives a node new work again."""
        await self._plane.drains.undrain(request.node_id, wire.call(request))
        return cluster_pb.UndrainNodeResponse()

    async def WatchCluster(
        self, request: cluster_pb.WatchClusterRequest, context: Any
    ) -> AsyncIterator[cluster_pb.WatchClusterResponse]:
        """Tells all of it, then what changes."""
        async with aclosing(self._plane.cluster.follow()) as revisions:
            async for revision in revisions:
                yield watch_wire.response(revision)


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
        async with aclosing(self._membership.follow(stream, reports)) as answers:
            async for answer, revision in answers:
                if answer is Answer.ACK:
                    ack = fleet_pb.Ack(revision=revision, lease=self._lease)
                    yield fleet_pb.ReportResponse(ack=ack)
                elif answer is Answer.RESYNC:
                    yield fleet_pb.ReportResponse(resync=fleet_pb.Resync())


async def _reports(requests: AsyncIterator[fleet_pb.ReportRequest]) -> AsyncIterator[Report]:
    async for request in requests:
        yield fleet_wire.report(request)
