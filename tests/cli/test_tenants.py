"""`sllm tenants`."""

import json

from serverlessllm.v1 import tenant_service_pb2 as pb

from tests.cli.conftest import Run
from tests.client.fake_control import FakeControl
from tests.client.test_tenants import ACME


def test_each_tenant_is_shown_with_what_it_has_of_what_it_may_have(
    run: Run, control: FakeControl
) -> None:
    control.reply("ListTenants", pb.ListTenantsResponse(tenants=[ACME]))
    heading, row = run("tenants", "ls").out.splitlines()
    assert heading.split() == [
        *("TENANT", "REQUESTS", "INSTANCES", "PINNED", "TIERS", "TOKENS/MIN", "CALLS/S"),
        "WEIGHT",
        *("SERVED", "PROMPT", "GENERATED", "DEVICE", "TIME"),
    ]
    assert row.split() == [
        *("acme", "2/3", "1", "1.0", "GiB/1.0", "TiB", "SSD", "512.0", "GiB/2.0", "TiB", "-"),
        *("2.5", "0.5", "4", "50", "60", "7", "s"),
    ]


def test_what_is_not_named_is_not_bounded(run: Run, control: FakeControl) -> None:
    control.reply("SetTenant", pb.SetTenantResponse(tenant=ACME))
    out = run(
        *("tenants", "set", "acme", "--requests", "3", "--pinned", "1TiB", "--dram", "4GiB"),
        *("--calls-per-second", "0.5", "--json"),
    ).out
    assert json.loads(out)["limits"]["requests"] == 3
    (request,) = control.requests["SetTenant"]
    assert request.limits == pb.TenantLimits(
        requests=3, pinned_bytes=1 << 40, weight=1.0, calls_per_second=0.5, dram_bytes=4 << 30
    )


def test_a_limit_that_is_no_number_is_refused(run: Run, control: FakeControl) -> None:
    assert run("tenants", "set", "acme", "--requests", "many").code == 2
    assert "SetTenant" not in control.requests
