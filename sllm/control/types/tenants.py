"""Tenants, as operators see them."""

from collections.abc import Mapping
from dataclasses import dataclass

from sllm.control.tenants.limits import Limits
from sllm.control.tenants.usage import Usage


@dataclass(frozen=True, slots=True)
class TenantView:
    """What a tenant may take, what it takes now, and what it has taken."""

    tenant: str
    limits: Limits
    usage: Usage
    since: float
    """When that began to be counted, in seconds since the epoch."""
    requests: int
    """Under way now, without those of batches."""
    instances: int
    pinned_bytes: int
    tier_bytes: Mapping[str, float]
    """Of its checkpoints on each tier, by the tier's name."""
