"""The client as those use it who decide what tenants may take."""

from serverlessllm.v1 import tenant_service_pb2 as pb

from sllm.client.base import BaseClient
from sllm.client.connection import PAGE_SIZE
from sllm.client.types.tenants import Tenant, TenantLimits
from sllm.client.wire import requests
from sllm.client.wire import tenants as messages


class TenantClient(BaseClient):
    """The part of a client that is about tenants: see `AsyncClient`."""

    async def set_tenant(self, tenant: str, limits: TenantLimits) -> Tenant:
        """Bounds what a tenant may take, from now on.

        Args:
            tenant: its name. "default" is the tenant of those who name none.
            limits: in the place of all that it had.

        Raises:
            errors.InvalidName: That is no name of a tenant.
            errors.InvalidArgument: A limit makes no sense.
        """
        with requests.fitting():
            request = pb.SetTenantRequest(
                request_id=requests.new_request_id(),
                tenant=tenant,
                limits=messages.limits_message(limits),
            )
        response = await self._connection.call(self._connection.tenants.SetTenant, request)
        return messages.tenant(response.tenant)

    async def tenants(self) -> list[Tenant]:
        """All tenants of whom anything is known, in order of their names."""
        request = pb.ListTenantsRequest(page_size=PAGE_SIZE)
        pages = self._connection.pages(self._connection.tenants.ListTenants, request)
        return [messages.tenant(one) async for page in pages for one in page.tenants]

    async def _own_tenant(self) -> tuple[str, bool]:
        """The tenant whose key is shown, and whether what others have is its to see as well."""
        request = pb.ListTenantsRequest(page_size=1)
        found = await self._connection.call(self._connection.tenants.ListTenants, request)
        return found.caller_tenant, found.caller_sees_all
