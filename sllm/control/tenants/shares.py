"""Whose turn it is among tenants, where there is not enough room for all."""

from collections import Counter
from collections.abc import Iterable, Mapping

from sllm.control.tenants.limits import NO_LIMITS, Limits
from sllm.control.tenants.names import tenant_of


class Shares:
    """How much of its share each tenant has: instances for each unit of its weight.

    Whoever has least goes first (weighted max-min fairness): one that asks for more than its share
    gets what others leave, and never what they ask for within theirs.

        shares = Shares(["acme:llama", "acme:opt", "llama"], {"acme": Limits(weight=2.0)})
        shares.used("acme:llama")    # 1.0, and 1.0 for "llama"
    """

    def __init__(self, instances_of: Iterable[str], limits: Mapping[str, Limits]) -> None:
        """`instances_of` names the deployment of each instance that is there, or on its way."""
        self._instances = Counter(map(tenant_of, instances_of))
        self._limits = limits

    def took(self, deployment: str) -> None:
        """Counts one instance more of a deployment."""
        self._instances[tenant_of(deployment)] += 1

    def used(self, deployment: str) -> float:
        """How much of its share the tenant of a deployment has."""
        tenant = tenant_of(deployment)
        return self._instances[tenant] / self._limits.get(tenant, NO_LIMITS).weight

    def is_full(self, deployment: str) -> bool:
        """Whether the tenant of a deployment has as many instances as it may have."""
        tenant = tenant_of(deployment)
        most = self._limits.get(tenant, NO_LIMITS).replicas
        return most is not None and self._instances[tenant] >= most

    def owes(self, holder: str, asker: str) -> bool:
        """Whether an instance of one deployment may have to end for one of another.

        Between two of one tenant always; otherwise only if its tenant has more of its share.
        """
        return tenant_of(holder) == tenant_of(asker) or self.used(holder) > self.used(asker)

    @property
    def of_one(self) -> bool:
        """Whether all instances are of one tenant, who owes nobody anything."""
        return len(self._instances) <= 1
