"""Tenants, from and to the protocol's messages."""

from dataclasses import asdict

from serverlessllm.v1 import tenant_service_pb2 as pb
from serverlessllm.v1 import types_pb2

from sllm.control.cluster.tiers import Tier
from sllm.control.tenants.limits import Limits
from sllm.control.tenants.usage import Usage
from sllm.control.types.tenants import TenantView
from sllm.control.wire import common


def limits(message: pb.TenantLimits) -> Limits:
    """What a tenant may take."""
    return Limits(**{field.name: value for field, value in message.ListFields()})


def tenant_message(view: TenantView) -> pb.Tenant:
    """A tenant, for those who operate the cluster."""
    return pb.Tenant(
        tenant=view.tenant,
        limits=_limits_message(view.limits),
        usage=_usage_message(view.usage, view.since),
        requests_under_way=view.requests,
        instances=view.instances,
        pinned_bytes=view.pinned_bytes,
        tier_bytes=[
            pb.TierBytes(tier=_tier(Tier[name]), bytes=int(size))
            for name, size in sorted(view.tier_bytes.items())
        ],
    )


def _limits_message(limits: Limits) -> pb.TenantLimits:
    return pb.TenantLimits(**asdict(limits))


def _usage_message(usage: Usage, since: float) -> pb.TenantUsage:
    tiers = sorted((Tier[name], size) for name, size in usage.byte_seconds.items())
    return pb.TenantUsage(
        since=common.timestamp(since),
        requests=usage.requests,
        prompt_tokens=usage.prompt_tokens,
        generated_tokens=usage.generated_tokens,
        device_time=common.duration(usage.device_seconds),
        tier_times=[pb.TierTime(tier=_tier(tier), byte_seconds=size) for tier, size in tiers],
    )


def _tier(tier: Tier) -> types_pb2.Tier.ValueType:
    return types_pb2.Tier.ValueType(tier)
