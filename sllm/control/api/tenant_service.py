"""TenantService: who shares the cluster, and what each may take."""

from typing import Any

from serverlessllm.v1 import tenant_service_pb2 as pb
from serverlessllm.v1.tenant_service_pb2_grpc import TenantServiceServicer

from sllm.control.access import principals
from sllm.control.api.pagination import page_of
from sllm.control.control_plane import ControlPlane
from sllm.control.types.access import CallerRole
from sllm.control.types.calls import DONE_ALONE
from sllm.control.wire import common, tenants


class TenantServicer(TenantServiceServicer):
    """Each method parses, calls and translates."""

    def __init__(self, plane: ControlPlane) -> None:
        self._tenancy = plane.tenancy

    async def SetTenant(self, request: pb.SetTenantRequest, context: Any) -> pb.SetTenantResponse:
        """Bounds what a tenant may take."""
        limits, call = tenants.limits(request.limits), common.call(request, DONE_ALONE)
        view = await self._tenancy.bound(request.tenant, limits, call)
        return pb.SetTenantResponse(tenant=tenants.tenant_message(view))

    async def ListTenants(
        self, request: pb.ListTenantsRequest, context: Any
    ) -> pb.ListTenantsResponse:
        """Lists tenants, page by page."""
        caller = principals.current()
        names = {one: None for one in self._tenancy.names() if caller.is_of(one)}
        page = page_of(names, request.page_size, request.page_token)
        listed = [tenants.tenant_message(one) for one in self._tenancy.views(page.keys)]
        return pb.ListTenantsResponse(
            tenants=listed,
            next_page_token=page.next_token,
            caller_tenant=caller.tenant,
            caller_sees_all=caller.role is CallerRole.ADMIN,
        )
