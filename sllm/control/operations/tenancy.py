"""Tenants as operators bound and see them, and the books of what they use."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final

from sllm import errors
from sllm.clock import Clock
from sllm.control.deployments.evictions import Evictions
from sllm.control.operations.pinning import Pinning
from sllm.control.state import tenancy, tier_bytes
from sllm.control.state.durable import Durable
from sllm.control.state.state import State
from sllm.control.tenants.limits import Limits
from sllm.control.tenants.names import check_tenant, tenant_of
from sllm.control.tenants.usage import Held, Usage
from sllm.control.types.calls import Call, Done
from sllm.control.types.tenants import TenantView

_LOOK_SECONDS: Final = 2.0
"""Between two looks at what tenants hold. What comes and goes in between is not counted."""


class Tenancy:
    """Limits, in memory and in the store. Belongs to the event loop."""

    def __init__(
        self,
        durable: Durable,
        state: State,
        pinning: Pinning,
        evictions: Evictions,
        clock: Clock,
        max_queued: int,
    ) -> None:
        """`max_queued`: how many requests may wait altogether."""
        self._durable = durable
        self._state = state
        self._pinning = pinning
        self._evictions = evictions
        self._clock = clock
        self._max_queued = max_queued
        self._since = time.time()
        self._changing = asyncio.Lock()

    async def load(self) -> None:
        """Takes in what was stored before a restart."""
        self._state.tenants.limits.update(await self._durable.run(self._durable.store.tenants))

    async def run(self) -> None:
        """Keeps the books until it is cancelled."""
        while True:
            await self._trim(self._look())
            await self._clock.sleep(_LOOK_SECONDS)

    async def bound(self, tenant: str, limits: Limits, call: Call[Done]) -> TenantView:
        """Bounds what a tenant may take, from now on.

        Raises:
            errors.InvalidName: That is no tenant's name.
            errors.InvalidArgument: A limit makes no sense.
            errors.RequestIdInUse: The id of the call was used for another.
        """
        check_tenant(tenant)
        limits.validate()
        async with self._changing:
            if await self._durable.recall(call) is None:
                put = self._durable.store.put_tenant
                await self._durable.run(put, tenant, limits, call, time.time())
                self._state.tenants.limits[tenant] = limits
        (view,) = self.views([tenant])
        return view

    def take_call(self, tenant: str) -> None:
        """Counts a call of a tenant, of whatever kind.

        Raises:
            errors.TenantLimit: It makes more of them than it may.
        """
        self._state.tenants.take_call(tenant, self._clock.now())

    def has_all(self, tenant: str) -> errors.TenantLimit | None:
        """Why a tenant may make no request more. None: it may make one, for all that is known."""
        return tenancy.has_all(self._state, tenant, self._clock.now(), self._max_queued)

    def names(self) -> set[str]:
        """All tenants of whom anything is known."""
        tenants = self._state.tenants
        return {*tenants.limits, *tenants.usage.of, *map(tenant_of, self._state.deployments)}

    def views(self, names: Iterable[str]) -> list[TenantView]:
        """Tenants as they are now; the cluster is looked at once for all of them."""
        held = self._look()
        instances = Counter(
            tenant_of(one.deployment) for one in self._state.fleet.known_instances()
        )
        return [self._view(name, instances[name], held.get(name, Held())) for name in names]

    def _view(self, tenant: str, instances: int, held: Held) -> TenantView:
        state = self._state
        return TenantView(
            tenant=tenant,
            limits=state.tenants.limits_of(tenant),
            usage=state.tenants.usage.of.get(tenant, Usage()),
            since=self._since,
            requests=state.tenants.under_way(tenant),
            instances=instances,
            pinned_bytes=self._pinning.pinned_bytes(tenant),
            tier_bytes=held.bytes_by_tier,
        )

    async def _trim(self, held: Mapping[str, Held]) -> None:
        """Has what is idle leave where tenants have more bytes than they may."""
        for tenant, limits in list(self._state.tenants.limits.items()):
            has = held.get(tenant, Held()).bytes_by_tier
            if any(has.get(tier, 0.0) > most for tier, most in limits.bytes_by_tier.items()):
                for node_id, copy in tier_bytes.idle_beyond(self._state, tenant):
                    self._evictions.begin(node_id, copy)
                await asyncio.sleep(0)  # there may be many such tenants: others have their turn

    def _look(self) -> Mapping[str, Held]:
        """What each tenant holds, which is counted."""
        held = tenancy.held(self._state)
        self._state.tenants.usage.look(held, self._clock.now())
        return held
