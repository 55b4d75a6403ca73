"""Tenants, between the protocol's messages and the records that callers see."""

from dataclasses import asdict

from serverlessllm.v1 import tenant_service_pb2 as pb

from sllm.client.types.tenants import Tenant, TenantLimits, TenantUsage
from sllm.client.wire.values import known_tier, moment, seconds


def limits_message(limits: TenantLimits) -> pb.TenantLimits:
    """What a tenant is to be bounded to."""
    return pb.TenantLimits(**asdict(limits))


def tenant(message: pb.Tenant) -> Tenant:
    """A tenant as it is."""
    return Tenant(
        tenant=message.tenant,
        limits=_limits(message.limits),
        usage=_usage(message.usage),
        requests_under_way=message.requests_under_way,
        instances=message.instances,
        pinned_bytes=message.pinned_bytes,
        tier_bytes={known_tier(one.tier).name: one.bytes for one in message.tier_bytes},
    )


def _limits(message: pb.TenantLimits) -> TenantLimits:
    return TenantLimits(**{field.name: value for field, value in message.ListFields()})


def _usage(message: pb.TenantUsage) -> TenantUsage:
    return TenantUsage(
        since=moment(message.since),
        requests=message.requests,
        prompt_tokens=message.prompt_tokens,
        generated_tokens=message.generated_tokens,
        device_seconds=seconds(message.device_time),
        byte_seconds={known_tier(one.tier).name: one.byte_seconds for one in message.tier_times},
    )
