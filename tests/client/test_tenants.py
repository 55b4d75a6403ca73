"""What the client asks of tenants, and what it makes of the answers."""

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from serverlessllm.v1 import tenant_service_pb2 as pb
from serverlessllm.v1 import types_pb2 as types

import sllm
from tests.client.conftest import Call
from tests.client.fake_control import FakeControl

ACME = pb.Tenant(
    tenant="acme",
    limits=pb.TenantLimits(
        requests=3, pinned_bytes=1 << 40, weight=0.5, calls_per_second=2.5, ssd_bytes=1 << 41
    ),
    usage=pb.TenantUsage(
        since=Timestamp(seconds=9),
        requests=4,
        prompt_tokens=50,
        generated_tokens=60,
        device_time=Duration(seconds=7),
        tier_times=[pb.TierTime(tier=types.TIER_DRAM, byte_seconds=1.5)],
    ),
    requests_under_way=2,
    instances=1,
    pinned_bytes=1 << 30,
    tier_bytes=[pb.TierBytes(tier=types.TIER_SSD, bytes=1 << 39)],
)
LIMITS = sllm.TenantLimits(
    requests=3, pinned_bytes=1 << 40, weight=0.5, calls_per_second=2.5, ssd_bytes=1 << 41
)


def test_tenants_are_told_as_they_are(control: FakeControl, call: Call) -> None:
    control.reply("ListTenants", pb.ListTenantsResponse(tenants=[ACME]))
    assert call("tenants") == [
        sllm.Tenant(
            tenant="acme",
            limits=LIMITS,
            usage=sllm.TenantUsage(
                since=9.0,
                requests=4,
                prompt_tokens=50,
                generated_tokens=60,
                device_seconds=7.0,
                byte_seconds={"DRAM": 1.5},
            ),
            requests_under_way=2,
            instances=1,
            pinned_bytes=1 << 30,
            tier_bytes={"SSD": 1 << 39},
        )
    ]


def test_limits_are_asked_for_as_they_were_given(control: FakeControl, call: Call) -> None:
    control.reply("SetTenant", pb.SetTenantResponse(tenant=ACME))
    assert call("set_tenant", "acme", LIMITS).limits == LIMITS
    (request,) = control.requests["SetTenant"]
    assert request.request_id
    request.request_id = ""
    assert request == pb.SetTenantRequest(tenant="acme", limits=ACME.limits)
