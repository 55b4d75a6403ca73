"""DeploymentService: what should exist, and how it is doing."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from serverlessllm.v1 import deployment_service_pb2 as pb
from serverlessllm.v1.deployment_service_pb2_grpc import DeploymentServiceServicer

from sllm.control.access.principals import own
from sllm.control.api.pagination import page_of
from sllm.control.control_plane import ControlPlane
from sllm.control.state.statuses import status_of
from sllm.control.types.calls import DONE_ALONE
from sllm.control.wire import common, deployments


class DeploymentServicer(DeploymentServiceServicer):
    """Each method parses, calls and translates."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane

    async def Deploy(self, request: pb.DeployRequest, context: Any) -> pb.DeployResponse:
        """Creates a deployment, or changes its policy."""
        call = common.call(request, deployments.DEPLOYED)
        status = await self._plane.deploy(deployments.spec(request), call)
        return pb.DeployResponse(deployment=deployments.message(status))

    async def GetDeployment(
        self, request: pb.GetDeploymentRequest, context: Any
    ) -> pb.GetDeploymentResponse:
        """Tells how a deployment is doing."""
        status = status_of(self._plane.state, request.name)
        return pb.GetDeploymentResponse(deployment=deployments.message(status))

    async def ListDeployments(
        self, request: pb.ListDeploymentsRequest, context: Any
    ) -> pb.ListDeploymentsResponse:
        """Tells how all deployments are doing, page by page."""
        state = self._plane.state
        page = page_of(own(state.deployments), request.page_size, request.page_token)
        messages = [deployments.message(status_of(state, name)) for name in page.keys]
        return pb.ListDeploymentsResponse(deployments=messages, next_page_token=page.next_token)

    async def DeleteDeployment(
        self, request: pb.DeleteDeploymentRequest, context: Any
    ) -> pb.DeleteDeploymentResponse:
        """Ends a deployment with its requests and instances."""
        await self._plane.delete(request.name, common.call(request, DONE_ALONE))
        return pb.DeleteDeploymentResponse()

    async def WatchDeployment(
        self, request: pb.WatchDeploymentRequest, context: Any
    ) -> AsyncIterator[pb.WatchDeploymentResponse]:
        """Tells how a deployment is doing, and again whenever that changes."""
        async with aclosing(self._plane.deployment_watch.follow(request.name)) as statuses:
            async for status in statuses:
                message = deployments.message(status)
                yield pb.WatchDeploymentResponse(deployment=message)
