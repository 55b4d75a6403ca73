"""Tenants over real gRPC: a real control plane, and nodes that are scripted."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from serverlessllm.v1 import cluster_service_pb2 as cluster_pb
from serverlessllm.v1 import inference_service_pb2 as inference_pb
from serverlessllm.v1 import types_pb2 as pb

from sllm import errors
from sllm.control.orchestration.scheduler import Scheduler
from tests.control.clusters import Cluster
from tests.control.fake_node import FakeNode
from tests.support import assert_eventually


def limit_of(caught: pytest.ExceptionInfo[errors.TenantLimit]) -> str:
    return caught.value.metadata["limit"]


async def test_requests_beyond_the_limit_are_refused_until_others_have_ended(
    cluster: Cluster, node: FakeNode
) -> None:
    await cluster.caller.deploy(max_concurrency=4)
    tenant = await cluster.caller.set_tenant(requests=1)
    assert (tenant.tenant, tenant.limits.requests, tenant.limits.weight) == ("default", 1, 1.0)
    assert not tenant.limits.HasField("replicas")
    node.script.before_finish.shut()
    first = await cluster.caller.generate().until("tokens")
    with pytest.raises(errors.TenantLimit, match="tenant default may have 1 requests") as caught:
        await cluster.caller.complete()
    assert (limit_of(caught), caught.value.retry_after) == ("requests", 1.0)
    node.script.before_finish.open()
    await first.end()
    await cluster.caller.complete()


async def test_requests_that_would_wait_are_bounded_apart(cluster: Cluster, node: FakeNode) -> None:
    await cluster.caller.deploy(max_concurrency=1)
    await cluster.caller.set_tenant(queued=1)
    node.script.before_finish.shut()
    first = await cluster.caller.generate().until("tokens")
    second = await cluster.caller.generate().until("queued")
    with pytest.raises(errors.TenantLimit) as caught:
        await cluster.caller.complete()
    assert limit_of(caught) == "queued"
    node.script.before_finish.open()
    await first.end()
    await second.end()


async def test_who_has_used_its_tokens_waits_and_others_do_not(
    cluster: Cluster, node: FakeNode
) -> None:
    await cluster.caller.deploy()
    await cluster.caller.set_tenant(tokens_per_minute=2)
    await cluster.caller.set_tenant("other", tokens_per_minute=0)
    await cluster.caller.complete()  # three tokens, and those of its prompt
    with pytest.raises(errors.TenantLimit, match="2 tokens a minute") as caught:
        await cluster.caller.complete()
    assert limit_of(caught) == "tokens_per_minute"
    assert caught.value.retry_after
    assert caught.value.retry_after > 30.0
    await cluster.caller.set_tenant()
    await cluster.caller.complete()


async def test_models_of_a_tenant_take_turns_in_the_instances_that_it_may_have(
    cluster: Cluster, node: FakeNode
) -> None:
    await cluster.caller.set_tenant(replicas=1)
    await cluster.caller.deploy("one", "file:///models/one")
    await cluster.caller.deploy("two", "file:///models/two")
    await cluster.caller.complete("one")
    await cluster.caller.complete("two")
    assert [one.deployment for one in await cluster.caller.instances()] == ["two"]


async def test_a_busy_instance_of_the_tenant_ends_for_its_next_once_its_requests_have(
    cluster: Cluster, node: FakeNode
) -> None:
    await cluster.caller.set_tenant(replicas=1)
    await cluster.caller.deploy("one", "file:///models/one")
    await cluster.caller.deploy("two", "file:///models/two")
    node.script.before_finish.shut()
    first = await cluster.caller.generate("one").until("tokens")
    second = await cluster.caller.generate("two").until("queued")

    async def drains() -> bool:
        states = [one.state for one in await cluster.caller.instances("one")]
        return states == [pb.INSTANCE_STATE_DRAINING]

    await assert_eventually(drains)
    node.script.before_finish.open()
    await first.end()
    await second.end()


async def test_more_kept_instances_than_it_may_have_are_refused(
    cluster: Cluster, node: FakeNode
) -> None:
    await cluster.caller.set_tenant(replicas=1)
    await cluster.caller.deploy("one", "file:///models/one", min_replicas=1)
    with pytest.raises(errors.TenantLimit, match="would keep 2") as caught:
        await cluster.caller.deploy("two", "file:///models/two", min_replicas=1)
    assert limit_of(caught) == "replicas"
    await cluster.caller.deploy("two", "file:///models/two")


async def test_pins_beyond_the_limit_are_refused(cluster: Cluster, node: FakeNode) -> None:
    deployed = await cluster.caller.deploy()
    await cluster.caller.set_tenant(pinned_bytes=deployed.model.size_bytes)
    pins = [
        cluster_pb.PinRequest(deployment="tiny", tier=tier, node_id="n1")
        for tier in (pb.TIER_SSD, pb.TIER_SSD, pb.TIER_DRAM)
    ]
    await cluster.caller.stream("Pin", pins[0])
    await cluster.caller.stream("Pin", pins[1])  # the same again is no more
    with pytest.raises(errors.TenantLimit) as caught:
        await cluster.caller.stream("Pin", pins[2])
    assert limit_of(caught) == "pinned_bytes"
    tenants = await cluster.caller.list_tenants()
    assert tenants["default"].pinned_bytes == deployed.model.size_bytes


async def test_what_was_used_is_counted(cluster: Cluster, node: FakeNode) -> None:
    await cluster.caller.deploy()
    await cluster.caller.complete()

    async def counted() -> bool:
        usage = (await cluster.caller.list_tenants())["default"].usage
        return usage.device_time.ToNanoseconds() > 0 and bool(usage.tier_times)

    await assert_eventually(counted)
    found = (await cluster.caller.list_tenants())["default"]
    assert (found.usage.requests, found.usage.generated_tokens) == (1, 3)
    assert (found.instances, found.requests_under_way) == (1, 0)
    assert {one.tier for one in found.usage.tier_times} >= {pb.TIER_SSD}


async def test_a_prompt_is_counted_once_however_it_is_said_and_read(
    cluster: Cluster, node: FakeNode
) -> None:
    async def counted() -> tuple[int, int]:
        usage = (await cluster.caller.list_tenants())["default"].usage
        return usage.prompt_tokens, usage.generated_tokens

    await cluster.caller.deploy()
    await cluster.caller.complete(token_ids=pb.TokenIds(ids=[4, 5, 6]))
    assert await counted() == (3, 3)
    node.script.before_finish.shut()
    lingers: dict[str, Any] = {"request_id": "r", "linger": Duration(seconds=60)}
    first = await cluster.caller.generate(**lingers).until_tokens(3)
    assert await counted() == (5, 6)
    had = inference_pb.Continuation(token_ids=first.token_ids[:1])
    sequence = 1 + first.kinds.index("tokens")
    on: dict[str, Any] = {"resume_from_sequence": sequence, "continuation": had, **lingers}
    again = await cluster.caller.generate(**on).until_tokens(2)
    node.script.before_finish.open()
    await again.end()
    assert (await counted())[0] == 5


async def test_limits_outlive_the_control_plane(cluster: Cluster, node: FakeNode) -> None:
    await cluster.caller.set_tenant("acme", requests=7, weight=2.5)
    await cluster.restart_control()
    limits = (await cluster.caller.list_tenants())["acme"].limits
    assert (limits.requests, limits.weight) == (7, 2.5)


async def test_a_repeated_call_changes_nothing(cluster: Cluster) -> None:
    await cluster.caller.set_tenant("acme", "id", requests=7)
    await cluster.caller.set_tenant("acme", requests=8)
    tenant = await cluster.caller.set_tenant("acme", "id", requests=7)
    assert tenant.limits.requests == 8
    with pytest.raises(errors.RequestIdInUse):
        await cluster.caller.set_tenant("acme", "id", requests=9)


@pytest.mark.parametrize(
    ("tenant", "limits", "error"),
    [
        ("", {}, errors.InvalidName),
        ("A", {}, errors.InvalidName),
        ("a:b", {}, errors.InvalidName),
        ("a", {"requests": -1}, errors.InvalidArgument),
        ("a", {"weight": 0.0}, errors.InvalidArgument),
        ("a", {"weight": float("nan")}, errors.InvalidArgument),
    ],
)
async def test_bad_limits_are_refused(
    cluster: Cluster, tenant: str, limits: dict[str, Any], error: type[errors.SllmError]
) -> None:
    with pytest.raises(error):
        await cluster.caller.set_tenant(tenant, **limits)
    assert await cluster.caller.list_tenants() == {}


async def test_a_model_for_which_no_instance_can_end_is_told_why(
    cluster: Cluster, node: FakeNode
) -> None:
    await cluster.caller.set_tenant(replicas=1)
    await cluster.caller.deploy("one", "file:///models/one", min_replicas=1)
    await cluster.caller.deploy("two", "file:///models/two")
    await cluster.wait_for_instances(1)
    with pytest.raises(errors.TenantLimit, match="min_replicas keeps all") as caught:
        await cluster.caller.complete("two")
    assert limit_of(caught) == "replicas"
    await cluster.caller.complete("one")


async def test_a_tenant_that_may_have_no_instance_is_told_so(
    cluster: Cluster, node: FakeNode
) -> None:
    await cluster.caller.deploy()
    await cluster.caller.set_tenant(replicas=0)
    with pytest.raises(errors.TenantLimit, match="may have no instance") as caught:
        await cluster.caller.complete()
    assert limit_of(caught) == "replicas"


async def test_who_waits_for_the_start_of_another_is_not_looked_at_again_and_again(
    cluster: Cluster, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = 0

    def schedule(self: Scheduler, wanted: Mapping[str, int]) -> None:
        nonlocal passes
        passes += 1
        really(self, wanted)

    really = Scheduler.schedule
    monkeypatch.setattr(Scheduler, "schedule", schedule)
    await cluster.caller.set_tenant(replicas=1)
    await cluster.caller.deploy("one", "file:///models/one")
    await cluster.caller.deploy("two", "file:///models/two")
    node.script.before_ready.shut()
    first = await cluster.caller.generate("one").until("queued")
    second = await cluster.caller.generate("two").until("queued")
    began = asyncio.get_running_loop().time()
    # Its patience ends meanwhile, and it waits on.
    await assert_eventually(lambda: asyncio.get_running_loop().time() > began + 0.5)
    passes = 0
    for _ in range(100):
        await cluster.caller.deployment("two")
    assert passes < 10
    node.script.before_ready.open()
    await first.end()
    await second.end()


async def test_instances_are_replaced_where_no_more_may_be(
    cluster: Cluster, node: FakeNode
) -> None:
    """As where there is no room for more: what is to be replaced ends first, once it is idle."""
    await cluster.caller.set_tenant(replicas=1)
    await cluster.caller.deploy(min_replicas=1, max_concurrency=2)
    await cluster.caller.complete()
    (before,) = await cluster.caller.instances()
    await cluster.caller.deploy(min_replicas=1, max_concurrency=3)

    async def replaced() -> bool:
        found = await cluster.caller.instances()
        return [one.instance_id for one in found] not in ([], [before.instance_id])

    await assert_eventually(replaced)
    await cluster.caller.complete()


async def test_an_instance_that_is_kept_takes_the_place_of_an_idle_one_of_its_tenant(
    cluster: Cluster, node: FakeNode
) -> None:
    await cluster.caller.set_tenant(replicas=1)
    await cluster.caller.deploy("one", "file:///models/one")
    await cluster.caller.complete("one")
    await cluster.caller.deploy("two", "file:///models/two", min_replicas=1)

    async def there() -> bool:
        found = await cluster.caller.instances()
        return [one.deployment for one in found] == ["two"]

    await assert_eventually(there)


async def test_whoever_says_that_it_reads_on_is_bounded_as_others_are(
    cluster: Cluster, node: FakeNode
) -> None:
    await cluster.caller.deploy(max_concurrency=4)
    await cluster.caller.set_tenant(requests=1)
    node.script.before_finish.shut()
    lingers: dict[str, Any] = {"request_id": "first", "linger": Duration(seconds=60)}
    first = await cluster.caller.generate(**lingers).until_tokens(3)

    async def is_refused() -> bool:  # once no node may tell any more that it goes on with it
        try:
            stream = cluster.caller.generate(request_id="other", resume_from_sequence=0)
            await stream.until("tokens")
        except errors.TenantLimit as error:
            return error.metadata["limit"] == "requests"
        stream.call.cancel()
        return False

    await assert_eventually(is_refused)
    had = inference_pb.Continuation(token_ids=first.token_ids)
    on: dict[str, Any] = {"resume_from_sequence": len(first.events), "continuation": had, **lingers}
    for _ in range(2):  # what was taken goes on, for whoever reads it
        first = await cluster.caller.generate(**on).until("started")
    node.script.before_finish.open()
    await first.end()
    assert (await cluster.caller.list_tenants())["default"].requests_under_way == 0
