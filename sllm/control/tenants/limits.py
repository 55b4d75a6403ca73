"""What a tenant may take of the cluster at once."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Final

from sllm import errors
from sllm.config import format_bytes

MAX_WEIGHT: Final = 1000.0


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one tenant. None: there is no bound.

    limits = Limits(requests=32, tokens_per_minute=60_000, weight=2.0)
    """

    requests: int | None = None
    """Under way at once, those that wait among them."""
    queued: int | None = None
    """That wait at once."""
    tokens_per_minute: int | None = None
    """Of prompts and of what is generated."""
    replicas: int | None = None
    """Instances of all its deployments together."""
    pinned_bytes: int | None = None
    """Of checkpoints that it keeps from being evicted, over all nodes and tiers."""
    weight: float = 1.0
    """Its share of instances beside others' where there are not enough for all."""
    calls_per_second: float | None = None
    """Of any kind; a second's worth, and one at least, may come at once."""
    ssd_bytes: int | None = None
    """Of its checkpoints on the disks of all nodes; what several tenants have is counted in equal
    parts, here and below."""
    dram_bytes: int | None = None
    """The same in the memory of nodes."""
    device_bytes: int | None = None
    """The same in the memory of accelerators."""

    @property
    def bytes_by_tier(self) -> Mapping[str, int]:
        """The bounds of bytes that there are, by the name of their tier."""
        bounds = {"SSD": self.ssd_bytes, "DRAM": self.dram_bytes, "DEVICE": self.device_bytes}
        return {tier: most for tier, most in bounds.items() if most is not None}

    def validate(self) -> None:
        """Refuses bounds that make no sense.

        Raises:
            errors.InvalidArgument: Names the field.
        """
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "weight" and value is not None and not 0 <= value < math.inf:
                raise errors.InvalidArgument(f"{field.name} must be 0 or more, not {value}")
        if not (math.isfinite(self.weight) and 0 < self.weight <= MAX_WEIGHT):
            raise errors.InvalidArgument(
                f"weight must be more than 0 and at most {MAX_WEIGHT:g}, not {self.weight}"
            )


NO_LIMITS: Final = Limits()
"""Of tenants that were never bounded."""


@dataclass(frozen=True, slots=True)
class Load:
    """What a tenant has at this moment."""

    requests: int
    """Under way, those that wait among them."""
    queued: int
    """That wait."""
    token_wait: float
    """Seconds until it may use tokens again; 0: now."""


def check_requests(tenant: str, limits: Limits, load: Load, more: int, to_wait: int) -> None:
    """Refuses requests that would take more than their tenant may.

    Args:
        tenant: Whose they are.
        limits: Of that tenant.
        load: What it has already.
        more: How many come together.
        to_wait: How many of them would wait.

    Raises:
        errors.TenantLimit: Names the bound; says when to try again, if waiting alone helps.
    """
    _check_count(tenant, "requests", "requests under way", load.requests + more, limits.requests)
    if to_wait:
        _check_count(tenant, "queued", "requests that wait", load.queued + to_wait, limits.queued)
    if load.token_wait > 0:
        raise errors.TenantLimit(
            f"tenant {tenant} has used its {limits.tokens_per_minute} tokens a minute; try again "
            f"in {load.token_wait:.0f} s, or have the limit raised",
            metadata={"tenant": tenant, "limit": "tokens_per_minute"},
            retry_after=load.token_wait,
        )


def check_replicas(tenant: str, limits: Limits, kept: Mapping[str, int]) -> None:
    """Refuses deployments that would keep more instances than their tenant may have.

    Args:
        tenant: Whose they are.
        limits: Of that tenant.
        kept: min_replicas by deployment, of all that it would have.

    Raises:
        errors.TenantLimit: With the numbers.
    """
    count, most = sum(kept.values()), limits.replicas
    if most is not None and count > most:
        raise errors.TenantLimit(
            f"tenant {tenant} may have {most} instances, and min_replicas of its deployments would "
            f"keep {count}: lower it, there or here, or have the limit raised",
            metadata={"tenant": tenant, "limit": "replicas"},
        )


def check_pinned(tenant: str, limits: Limits, pinned_bytes: int) -> None:
    """Refuses pins that would keep more than their tenant may.

    Raises:
        errors.TenantLimit: With the numbers.
    """
    if limits.pinned_bytes is not None and pinned_bytes > limits.pinned_bytes:
        told = _told_bytes("pinned", pinned_bytes, limits.pinned_bytes)
        raise _beyond_bytes(tenant, "pinned_bytes", told, "unpin others")


def check_bytes(
    tenant: str,
    limits: Limits,
    tier: str,
    size: float,
    advice: str = "delete deployments, or unpin what is pinned",
) -> None:
    """Refuses what would have a tenant need more of a tier than it may have.

    Args:
        tenant: Whose it is.
        limits: Of that tenant.
        tier: Its name.
        size: Bytes that it would need there altogether.
        advice: What it can do about them.

    Raises:
        errors.TenantLimit: With the numbers.
    """
    most = limits.bytes_by_tier.get(tier)
    if most is not None and size > most:
        told = _told_bytes(f"of checkpoints on {tier}", size, most)
        raise _beyond_bytes(tenant, f"{tier.lower()}_bytes", told, advice)


def check_by_source(tenant: str, limits: Limits, tiers: Iterable[str]) -> None:
    """Refuses to hold on tiers what no deployment of a tenant names, where its bytes are bounded.

    These are counted by deployment: such a checkpoint would be nobody's.

    Raises:
        errors.TenantLimit: Names the bound.
    """
    if bounded := sorted(limits.bytes_by_tier.keys() & tiers):
        raise errors.TenantLimit(
            f"bytes of tenant {tenant} on {bounded[0]} are bounded, and counted by deployment: "
            "deploy the source, and prefetch the deployment",
            metadata={"tenant": tenant, "limit": f"{bounded[0].lower()}_bytes"},
        )


def check_calls(tenant: str, limits: Limits, wait: float) -> None:
    """Refuses a call that comes `wait` seconds before its tenant may make another.

    Raises:
        errors.TenantLimit: Says when to try again.
    """
    if wait > 0:
        raise errors.TenantLimit(
            f"tenant {tenant} may make {limits.calls_per_second:g} calls a second; try again in "
            f"{wait:.1f} s, or have the limit raised",
            metadata={"tenant": tenant, "limit": "calls_per_second"},
            retry_after=wait,
        )


def never_room(tenant: str, tier: str) -> errors.TenantLimit:
    """What requests are told whose instance never fits in what their tenant may have of a tier."""
    return errors.TenantLimit(
        f"the model does not fit in what tenant {tenant} may have on {tier}, beside what "
        "min_replicas and pins keep there: lower these, or have the limit raised",
        metadata={"tenant": tenant, "limit": f"{tier.lower()}_bytes"},
        retry_after=5.0,
    )


def never_an_instance(tenant: str, limits: Limits, kept: int) -> errors.TenantLimit:
    """What requests are told for which none of their tenant's instances ever ends.

    Args:
        tenant: Whose they are.
        limits: Of that tenant.
        kept: Instances that it has, all of which min_replicas keeps.
    """
    if kept:
        why = f"may have {limits.replicas} instances, and min_replicas keeps all {kept} that it has"
    else:
        why = "may have no instance"
    return errors.TenantLimit(
        f"tenant {tenant} {why}: lower min_replicas, or have the limit raised",
        metadata={"tenant": tenant, "limit": "replicas"},
        retry_after=5.0,
    )


def _told_bytes(what: str, size: float, most: int) -> str:
    """Bytes beyond a bound, as people read them; what is too much is told, however little."""
    made, beyond = format_bytes(int(size)), format_bytes(math.ceil(size - most))
    return f"{format_bytes(most)} {what}, and this would make {made}, {beyond} too much"


def _beyond_bytes(tenant: str, limit: str, told: str, advice: str) -> errors.TenantLimit:
    """No other try helps: what is kept stays until somebody ends it."""
    return errors.TenantLimit(
        f"tenant {tenant} may have {told}: {advice}, or have the limit raised",
        metadata={"tenant": tenant, "limit": limit},
    )


def _check_count(tenant: str, limit: str, what: str, count: int, most: int | None) -> None:
    if most is not None and count > most:
        raise errors.TenantLimit(
            f"tenant {tenant} may have {most} {what}, and this would make {count}; wait until "
            "some are done, or have the limit raised",
            metadata={"tenant": tenant, "limit": limit},
            retry_after=1.0,
        )
