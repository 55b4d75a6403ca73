"""Bytes that a tenant may have on each tier, over real gRPC: what is refused, waits, and leaves."""

import asyncio

import pytest
from serverlessllm.v1 import cluster_service_pb2 as cluster_pb
from serverlessllm.v1 import types_pb2 as pb

from sllm import errors
from tests.control.clusters import Cluster
from tests.control.fake_node import MIB, FakeNode
from tests.support import assert_eventually

MODEL = 10 * MIB
"""What each model of a fake node takes."""


def digests(node: FakeNode, tier: pb.Tier.ValueType) -> set[str]:
    return {digest for digest, on in node.copies if on == tier}


async def deploy_two(cluster: Cluster) -> None:
    for name in ("one", "two"):
        await cluster.caller.deploy(name, f"file:///models/{name}")


async def test_models_take_turns_in_the_memory_that_their_tenant_may_have(
    cluster: Cluster, node: FakeNode
) -> None:
    await cluster.caller.set_tenant(dram_bytes=MODEL)
    await deploy_two(cluster)
    for name in ("one", "two"):
        await cluster.caller.complete(name)
    assert [one.deployment for one in await cluster.caller.instances()] == ["two"]
    await assert_eventually(lambda: digests(node, pb.TIER_DRAM) == {"digest-of-file:///models/two"})
    assert len(digests(node, pb.TIER_SSD)) == 2, "they stay below"
    (tenant,) = (await cluster.caller.list_tenants()).values()
    assert {one.tier: one.bytes for one in tenant.tier_bytes}[pb.TIER_DRAM] == MODEL


async def test_instances_that_share_weights_count_once(cluster: Cluster, node: FakeNode) -> None:
    await cluster.caller.set_tenant(dram_bytes=MODEL)
    await cluster.caller.deploy("one", "file:///models/one", min_replicas=2, max_replicas=2)
    await cluster.wait_for_instances(2)


async def test_deployments_that_would_not_all_be_on_disk_are_refused(
    cluster: Cluster, node: FakeNode
) -> None:
    await cluster.caller.set_tenant(ssd_bytes=2 * MODEL - 1, dram_bytes=MODEL)
    await cluster.caller.deploy("one", "file:///models/one")
    await cluster.caller.deploy("one", "file:///models/one", max_concurrency=3)
    with pytest.raises(errors.TenantLimit, match=r"would make 20\.0 MiB, 1 B too much") as caught:
        await cluster.caller.deploy("two", "file:///models/two")
    assert caught.value.metadata["limit"] == "ssd_bytes"
    await cluster.caller.set_tenant(dram_bytes=MODEL - 1)
    with pytest.raises(errors.TenantLimit) as caught:
        await cluster.caller.deploy("two", "file:///models/two")
    assert caught.value.metadata["limit"] == "dram_bytes"
    await cluster.caller.deploy("one", "file:///models/one", max_concurrency=2)  # it takes no more


async def test_replicas_that_are_never_within_the_limit_are_refused(
    cluster: Cluster, node: FakeNode
) -> None:
    await cluster.caller.set_tenant(dram_bytes=2 * MODEL - 1)
    await cluster.caller.deploy("one", "file:///models/one", min_replicas=1)
    with pytest.raises(errors.TenantLimit, match="lower min_replicas") as caught:
        await cluster.caller.deploy("two", "file:///models/two", min_replicas=1)
    assert caught.value.metadata["limit"] == "dram_bytes"
    await cluster.caller.deploy("two", "file:///models/two")
    await cluster.caller.deploy("one", "file:///models/one")
    await cluster.caller.deploy("two", "file:///models/two", min_replicas=1)


@pytest.mark.parametrize("method", ["Pin", "Prefetch"])
async def test_what_would_be_held_beyond_the_limit_is_refused(
    cluster: Cluster, node: FakeNode, method: str
) -> None:
    await deploy_two(cluster)
    await cluster.caller.set_tenant(dram_bytes=MODEL)
    make = {"Pin": cluster_pb.PinRequest, "Prefetch": cluster_pb.PrefetchRequest}[method]
    asked = [
        make(deployment=name, tier=pb.TIER_DRAM, node_id="n1") for name in ("one", "one", "two")
    ]
    await cluster.caller.stream(method, asked[0])
    await cluster.caller.stream(method, asked[1])  # the same again is no more
    with pytest.raises(errors.TenantLimit) as caught:
        await cluster.caller.stream(method, asked[2])
    assert caught.value.metadata["limit"] == "dram_bytes"


@pytest.mark.parametrize("method", ["Pin", "Prefetch"])
async def test_what_is_held_in_memory_counts_on_disk_as_well(
    cluster: Cluster, node: FakeNode, method: str
) -> None:
    await cluster.add_node("n2")
    await cluster.caller.deploy()
    await cluster.caller.set_tenant(ssd_bytes=MODEL)
    make = {"Pin": cluster_pb.PinRequest, "Prefetch": cluster_pb.PrefetchRequest}[method]
    held = make(deployment="tiny", tier=pb.TIER_DRAM, node_id="n1")
    await cluster.caller.stream(method, held)
    await assert_eventually(lambda: digests(node, pb.TIER_DRAM))
    with pytest.raises(errors.TenantLimit) as caught:
        await cluster.caller.stream(
            method, make(deployment="tiny", tier=pb.TIER_DRAM, node_id="n2")
        )
    assert caught.value.metadata["limit"] == "ssd_bytes"
    await cluster.caller.stream(method, held)


@pytest.mark.parametrize(("first", "second"), [("Pin", "Prefetch"), ("Prefetch", "Pin")])
async def test_what_is_on_its_way_counts_against_all_that_would_come(
    cluster: Cluster, node: FakeNode, first: str, second: str
) -> None:
    await deploy_two(cluster)
    await assert_eventually(lambda: len(digests(node, pb.TIER_SSD)) == 2)
    await cluster.caller.set_tenant(dram_bytes=MODEL)
    make = {"Pin": cluster_pb.PinRequest, "Prefetch": cluster_pb.PrefetchRequest}
    node.script.before_promoted.shut()
    coming = make[first](deployment="one", tier=pb.TIER_DRAM, node_id="n1")
    under_way = asyncio.create_task(cluster.caller.stream(first, coming))
    await assert_eventually(lambda: node.script.before_promoted.waiting)
    with pytest.raises(errors.TenantLimit) as caught:
        await cluster.caller.stream(
            second, make[second](deployment="two", tier=pb.TIER_DRAM, node_id="n1")
        )
    assert caught.value.metadata["limit"] == "dram_bytes"
    node.script.before_promoted.open()
    await under_way


async def test_a_prefetch_counts_when_its_deployment_is_gone(
    cluster: Cluster, node: FakeNode
) -> None:
    await deploy_two(cluster)
    await cluster.caller.set_tenant(dram_bytes=MODEL)
    one, two = (
        cluster_pb.PrefetchRequest(deployment=name, tier=pb.TIER_DRAM) for name in ("one", "two")
    )
    await cluster.caller.stream("Prefetch", one)
    await cluster.caller.delete("one")
    with pytest.raises(errors.TenantLimit):
        await cluster.caller.stream("Prefetch", two)


async def test_a_model_that_never_fits_any_more_is_told_so(
    cluster: Cluster, node: FakeNode
) -> None:
    await cluster.caller.deploy()
    await cluster.caller.set_tenant(dram_bytes=MODEL - 1)
    with pytest.raises(errors.TenantLimit, match="does not fit") as caught:
        await cluster.caller.complete()
    assert caught.value.metadata["limit"] == "dram_bytes"


async def test_no_instance_ends_for_a_model_that_does_not_fit_beside_what_is_pinned(
    cluster: Cluster, node: FakeNode
) -> None:
    await cluster.caller.set_tenant(dram_bytes=MODEL)
    await deploy_two(cluster)
    await cluster.caller.complete("one")
    await cluster.caller.stream(
        "Pin", cluster_pb.PinRequest(deployment="one", tier=pb.TIER_DRAM, node_id="n1")
    )
    with pytest.raises(errors.TenantLimit, match="does not fit"):
        await cluster.caller.complete("two")
    assert [one.deployment for one in await cluster.caller.instances()] == ["one"]
