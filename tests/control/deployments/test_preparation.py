"""A deployment's checkpoint comes to a node as soon as one takes it; what fails is told."""

from typing import Any

import pytest
from serverlessllm.v1 import deployment_service_pb2 as deployment_pb
from serverlessllm.v1 import types_pb2 as pb

from sllm import errors
from sllm.control.deployments.catalog import Catalog
from tests.control.clusters import Cluster
from tests.control.fake_node import FakeNode
from tests.control.operations.test_drains import drain, undrain
from tests.support import assert_eventually

PREPARING = deployment_pb.DEPLOYMENT_STATE_PREPARING
AVAILABLE = deployment_pb.DEPLOYMENT_STATE_AVAILABLE
FAILED = deployment_pb.DEPLOYMENT_STATE_FAILED


async def is_in(cluster: Cluster, state: int) -> None:
    async def there() -> bool:
        return (await cluster.caller.deployment("tiny")).state == state

    await assert_eventually(there)


async def test_what_is_deployed_while_all_nodes_are_drained_comes_once_one_is_not(
    cluster: Cluster, node: FakeNode
) -> None:
    await drain(cluster)
    deployed = await cluster.caller.deploy()
    assert deployed.state == PREPARING
    await undrain(cluster)
    await is_in(cluster, AVAILABLE)
    assert node.count("Promote") == 1


async def test_what_is_deployed_while_all_nodes_are_drained_comes_to_one_that_joins(
    cluster: Cluster, node: FakeNode
) -> None:
    await drain(cluster)
    await cluster.caller.deploy()
    other = await cluster.add_node("n2")
    await is_in(cluster, AVAILABLE)
    assert (node.count("Promote"), other.count("Promote")) == (0, 1)


@pytest.mark.parametrize("fault", [errors.SourceUnavailable("away"), RuntimeError("a bug")])
async def test_a_failure_of_any_kind_ends_it_and_it_can_be_tried_again(
    cluster: Cluster, node: FakeNode, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    async def fail(*_: Any) -> None:
        raise fault

    with monkeypatch.context() as patch:
        patch.setattr(Catalog, "learn_model", fail)
        node.script.before_promoted.shut()
        await cluster.caller.deploy()
        node.script.before_promoted.open()
        await is_in(cluster, FAILED)
    assert str(fault) in (await cluster.caller.deployment("tiny")).message
    node.copies.clear()
    node.send_full()
    await cluster.caller.deploy()
    await is_in(cluster, AVAILABLE)


@pytest.mark.parametrize("fault", [errors.NoCapacity, errors.ModelTooLarge])
async def test_what_no_disk_takes_is_available_from_memory(
    cluster: Cluster, node: FakeNode, fault: type[errors.SllmError]
) -> None:
    node.script.disk_error = fault("the disk is full")
    await cluster.caller.deploy()
    await is_in(cluster, AVAILABLE)
    assert {tier for _, tier in node.copies} == {pb.TIER_DRAM}
    await cluster.caller.complete()


async def test_what_no_tier_takes_has_failed(cluster: Cluster, node: FakeNode) -> None:
    node.script.promote_error = errors.NoCapacity("neither disk nor memory")
    await cluster.caller.deploy()
    await is_in(cluster, FAILED)
    assert node.count("Promote") == 2
