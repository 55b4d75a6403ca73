"""All tenants: what each may take, what it takes now, and what it has taken so far."""

from collections import Counter
from collections.abc import Iterable

from sllm.control.tenants.call_meter import CallMeter
from sllm.control.tenants.limits import NO_LIMITS, Limits, Load, check_calls, check_requests
from sllm.control.tenants.names import tenant_of
from sllm.control.tenants.shares import Shares
from sllm.control.tenants.token_meter import TokenMeter
from sllm.control.tenants.usage import UsageBook


class Tenants:
    """The books of all tenants, by the whole names of their deployments.

        tenants = Tenants()
        tenants.limits["acme"] = Limits(requests=32)
        tenants.check("acme:llama", more=1, to_wait=0, queued=3, now=clock.now())
        tenants.began("acme:llama")
        tenants.generated("acme:llama", 5, clock.now())
        tenants.ended("acme:llama")

    Belongs to the event loop.
    """

    def __init__(self) -> None:
        self.limits: dict[str, Limits] = {}
        """Of those who have any."""
        self.usage = UsageBook()
        self._meter = TokenMeter()
        self._calls = CallMeter()
        self._under_way: Counter[str] = Counter()

    def limits_of(self, tenant: str) -> Limits:
        """What a tenant may take; nothing is bounded of one that was never bounded."""
        return self.limits.get(tenant, NO_LIMITS)

    def check(self, deployment: str, *, more: int, to_wait: int, queued: int, now: float) -> None:
        """Refuses requests for a deployment that its tenant may not make now.

        Args:
            deployment: Its whole name.
            more: How many come together.
            to_wait: How many of them would wait.
            queued: Of all requests of its tenant, those that wait.
            now: Clock's seconds.

        Raises:
            errors.TenantLimit: Names the bound.
        """
        tenant = tenant_of(deployment)
        load = Load(self._under_way[tenant], queued, self._token_wait(tenant, now))
        check_requests(tenant, self.limits_of(tenant), load, more, to_wait)

    def take_call(self, tenant: str, now: float) -> None:
        """Counts a call of a tenant, of whatever kind, or refuses it.

        Raises:
            errors.TenantLimit: It makes more than it may.
        """
        limits = self.limits_of(tenant)
        if limits.calls_per_second is not None:
            check_calls(tenant, limits, self._calls.take(tenant, limits.calls_per_second, now))

    def under_way(self, tenant: str) -> int:
        """How many requests of a tenant are under way, without what nobody waits for."""
        return self._under_way[tenant]

    def began(self, deployment: str, *, background: bool = False) -> None:
        """A request for a deployment is under way; what nobody waits for is never too much."""
        tenant = tenant_of(deployment)
        self._under_way[tenant] += not background
        self.usage.tenant(tenant).requests += 1

    def ended(self, deployment: str, *, background: bool = False) -> None:
        """It is no more."""
        self._under_way[tenant_of(deployment)] -= not background

    def prompted(self, deployment: str, tokens: int, now: float) -> None:
        """A prompt of so many tokens was computed for a request."""
        tenant = tenant_of(deployment)
        self.usage.tenant(tenant).prompt_tokens += tokens
        self._count(tenant, tokens, now)

    def generated(self, deployment: str, tokens: int, now: float) -> None:
        """So many tokens more were generated for a request."""
        tenant = tenant_of(deployment)
        self.usage.tenant(tenant).generated_tokens += tokens
        self._count(tenant, tokens, now)

    def shares(self, instances_of: Iterable[str]) -> Shares:
        """What each has of its share; see `Shares`."""
        return Shares(instances_of, self.limits)

    def _count(self, tenant: str, tokens: int, now: float) -> None:
        most = self.limits_of(tenant).tokens_per_minute
        if most is not None:
            self._meter.count(tenant, tokens, most, now)

    def _token_wait(self, tenant: str, now: float) -> float:
        most = self.limits_of(tenant).tokens_per_minute
        return 0.0 if most is None else self._meter.wait(tenant, most, now)
