"""Tenants: those who share a cluster, what each may take, and what each has used.

Times are seconds: durations, and moments since the Unix epoch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class TenantLimits:
    """What a tenant may take at once. None: nothing is bounded."""

    requests: int | None = None
    """Under way, those that wait among them; not those of batches."""
    queued: int | None = None
    """That wait."""
    tokens_per_minute: int | None = None
    """Of prompts and of what is generated."""
    replicas: int | None = None
    """Instances of all its deployments."""
    pinned_bytes: int | None = None
    """Of checkpoints that its pins keep, over all nodes and tiers."""
    weight: float = 1.0
    """Its share of instances beside others', where there is no room for all."""
    calls_per_second: float | None = None
    """Of any kind; a second's worth, and one at least, may come at once."""
    ssd_bytes: int | None = None
    """Of its checkpoints on the disks of all nodes; what several tenants have is counted in equal
    parts."""
    dram_bytes: int | None = None
    """The same in the memory of nodes."""
    device_bytes: int | None = None
    """The same in the memory of accelerators."""


@dataclass(frozen=True, slots=True)
class TenantUsage:
    """What a tenant has used."""

    since: float
    """When it began to be counted: as the control plane did."""
    requests: int
    """That it has made."""
    prompt_tokens: int
    """That were computed for its requests."""
    generated_tokens: int
    """That came of them."""
    device_seconds: float
    """Devices that its instances had, times how long they had them."""
    byte_seconds: Mapping[str, float]
    """Bytes of its checkpoints times seconds, by tier."""


@dataclass(frozen=True, slots=True)
class Tenant:
    """A tenant as it is."""

    tenant: str
    """Its name."""
    limits: TenantLimits
    """What it may take."""
    usage: TenantUsage
    """What it has used."""
    requests_under_way: int
    """Now, without those of batches."""
    instances: int
    """That it has now, those on their way among them."""
    pinned_bytes: int
    """That its pins keep now."""
    tier_bytes: Mapping[str, int] = field(default_factory=dict)
    """Of its checkpoints on each tier now, counted as its limits are."""
