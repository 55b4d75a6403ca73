"""What callers see of deployments and of the cluster."""

import asyncio
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from serverlessllm.v1 import cluster_service_pb2 as cluster_pb
from serverlessllm.v1 import deployment_service_pb2 as deployment_pb
from serverlessllm.v1 import node_service_pb2 as node_pb

from sllm import errors, rpc
from tests.control.clusters import SECONDS, Cluster
from tests.control.fake_node import FakeNode
from tests.support import assert_eventually

AVAILABLE = deployment_pb.DEPLOYMENT_STATE_AVAILABLE


async def _until_available(cluster: Cluster, name: str = "tiny") -> None:
    async def available() -> bool:
        return (await cluster.caller.deployment(name)).state == AVAILABLE

    await assert_eventually(available)


# --- deployments --------------------------------------------------------------------------------


async def test_a_deployment_tells_what_is_known_of_it(cluster: Cluster, node: FakeNode) -> None:
    deployed = await cluster.caller.deploy(
        "tiny", "/models/tiny", keep_alive=2.5, max_replicas=3, dtype="float32"
    )
    assert deployed.name == "tiny"
    assert deployed.source == "file:///models/tiny"
    assert deployed.engine.engine == "transformers"
    assert deployed.engine.dtype == "float32"
    assert deployed.engine.max_concurrency == 64
    assert not deployed.engine.HasField("kv_cache_tokens")
    assert deployed.scaling.min_replicas == 0
    assert deployed.scaling.max_replicas == 3
    assert deployed.scaling.keep_alive.ToMilliseconds() == 2500
    assert deployed.model.architecture == "FakeForCausalLM"
    assert deployed.created_at.seconds > 1_600_000_000


async def test_a_checkpoint_is_brought_to_a_node_in_the_background(
    cluster: Cluster, node: FakeNode
) -> None:
    deployed = await cluster.caller.deploy()
    assert deployed.state == deployment_pb.DEPLOYMENT_STATE_PREPARING
    await _until_available(cluster)
    after = await cluster.caller.deployment("tiny")
    assert after.model.digest == "digest-of-file:///models/tiny"
    assert node.names() == ["InspectSource", "Promote"]


async def test_a_checkpoint_that_cannot_be_brought_is_told_and_deploying_tries_again(
    cluster: Cluster, node: FakeNode
) -> None:
    node.script.promote_error = errors.CheckpointCorrupt("chunk 3 is not as written")
    await cluster.caller.deploy()

    async def failed() -> bool:
        deployment = await cluster.caller.deployment("tiny")
        return "chunk 3" in deployment.message

    await assert_eventually(failed)
    assert (await cluster.caller.deployment("tiny")).state == (
        deployment_pb.DEPLOYMENT_STATE_FAILED
    )
    node.script.promote_error = None
    await cluster.caller.deploy()
    await _until_available(cluster)


async def test_deleting_a_deployment_gives_its_preparation_up(
    cluster: Cluster, node: FakeNode
) -> None:
    gate = node.script.before_promoted
    gate.shut()
    await cluster.caller.deploy()
    await assert_eventually(lambda: gate.waiting)
    (asked,) = [call for call in node.calls if isinstance(call, node_pb.PromoteRequest)]
    assert asked.give_up
    await cluster.caller.delete("tiny")
    await assert_eventually(lambda: not gate.waiting)
    await cluster.caller.deploy()
    await assert_eventually(lambda: gate.waiting)
    gate.open()
    await _until_available(cluster)


async def test_deploying_again_changes_the_policy_only(cluster: Cluster, node: FakeNode) -> None:
    first = await cluster.caller.deploy(keep_alive=1.0)
    second = await cluster.caller.deploy(keep_alive=2.0)
    assert second.scaling.keep_alive.seconds == 2
    assert second.created_at == first.created_at
    assert node.count("InspectSource") == 2, "its source may be another one by now"


async def test_a_repeated_deploy_gets_the_first_answer(cluster: Cluster, node: FakeNode) -> None:
    first = await cluster.caller.deploy(request_id="once", keep_alive=1.0)
    await cluster.caller.deploy(keep_alive=2.0)
    again = await cluster.caller.deploy(request_id="once", keep_alive=1.0)
    assert again == first
    assert (await cluster.caller.deployment("tiny")).scaling.keep_alive.seconds == 2
    with pytest.raises(errors.RequestIdInUse):
        await cluster.caller.deploy(request_id="once", keep_alive=3.0)


async def test_repeated_deploys_at_the_same_time_are_one(cluster: Cluster, node: FakeNode) -> None:
    answers = await asyncio.gather(*(cluster.caller.deploy(request_id="one") for _ in range(5)))
    assert all(answer == answers[0] for answer in answers)


async def test_a_repeated_delete_is_no_error_even_after_a_new_deploy(
    cluster: Cluster, node: FakeNode
) -> None:
    await cluster.caller.deploy()
    await cluster.caller.delete("tiny", request_id="gone")
    await cluster.caller.deploy()
    await cluster.caller.delete("tiny", request_id="gone")
    await cluster.caller.deployment("tiny")
    with pytest.raises(errors.RequestIdInUse):
        await cluster.caller.deploy(request_id="gone")


async def test_another_source_needs_another_name(cluster: Cluster, node: FakeNode) -> None:
    await cluster.caller.deploy("tiny", "file:///a")
    with pytest.raises(errors.DeploymentExists, match="delete it first"):
        await cluster.caller.deploy("tiny", "file:///b")
    with pytest.raises(errors.DeploymentExists):
        await cluster.caller.deploy("tiny", "file:///a", dtype="float32")


async def test_a_source_that_one_node_lacks_may_be_on_another(cluster: Cluster) -> None:
    lacking = await cluster.add_node("n1")
    lacking.script.inspect_error = errors.SourceNotFound("not here")
    await cluster.add_node("n2")
    await cluster.caller.deploy()


async def test_a_model_that_fits_no_node_is_refused_with_numbers(
    cluster: Cluster, node: FakeNode
) -> None:
    node.script.model.size_bytes = 2**40
    with pytest.raises(errors.ModelTooLarge, match=str(2**40)):
        await cluster.caller.deploy()
    with pytest.raises(errors.DeploymentNotFound):
        await cluster.caller.deployment("tiny")


async def test_without_nodes_nothing_is_deployed(cluster: Cluster) -> None:
    with pytest.raises(errors.NoNodes) as caught:
        await cluster.caller.deploy()
    assert caught.value.retry_after


async def test_deployments_survive_a_restart(cluster: Cluster, node: FakeNode) -> None:
    await cluster.caller.deploy("a", "file:///a", request_id="first", kv_cache_tokens=77)
    await _until_available(cluster, "a")
    before = await cluster.caller.deployment("a")
    await cluster.restart_control()
    await _until_available(cluster, "a")
    assert await cluster.caller.deployment("a") == before
    await cluster.caller.deploy("a", "file:///a", request_id="first", kv_cache_tokens=77)
    assert node.count("Promote") == 1


async def test_a_watcher_sees_a_deployment_from_preparation_to_its_end(
    cluster: Cluster, node: FakeNode
) -> None:
    await cluster.caller.deploy()
    request = deployment_pb.WatchDeploymentRequest(name="tiny")
    call = cluster.caller.deployments.WatchDeployment(request, timeout=SECONDS)
    seen = [(await call.read()).deployment]
    while seen[-1].state != AVAILABLE:
        seen.append((await call.read()).deployment)
    stream = asyncio.create_task(cluster.caller.complete())
    while not seen[-1].ready_instances:
        seen.append((await call.read()).deployment)
    await stream
    await cluster.caller.delete("tiny")
    async with asyncio.timeout(SECONDS):
        while await call.read() != grpc.aio.EOF:
            pass
    assert await call.code() == grpc.StatusCode.OK


@pytest.mark.parametrize("what", ["deployments", "nodes", "instances"])
async def test_lists_come_in_pages(cluster: Cluster, what: str) -> None:
    for node_id in ("n1", "n2", "n3"):
        await cluster.add_node(node_id)
    for name in ("a", "b", "c"):
        await cluster.caller.deploy(name, f"file:///{name}", min_replicas=1)
    await cluster.wait_for_instances(3)
    names, sizes, token = [], [], ""
    while True:
        page, token = await _page(cluster, what, token)
        names += page
        sizes.append(len(page))
        if not token:
            break
    assert sizes == [2, 1]
    assert names == sorted(names)
    assert len(set(names)) == 3


async def _page(cluster: Cluster, what: str, token: str) -> tuple[list[str], str]:
    caller: Any = cluster.caller
    fields: dict[str, Any] = {"page_size": 2, "page_token": token}
    if what == "deployments":
        request = deployment_pb.ListDeploymentsRequest(**fields)
        deployments = await caller.deployments.ListDeployments(request)
        return [one.name for one in deployments.deployments], deployments.next_page_token
    if what == "nodes":
        nodes = await caller.cluster.ListNodes(cluster_pb.ListNodesRequest(**fields))
        return [one.node_id for one in nodes.nodes], nodes.next_page_token
    instances = await caller.cluster.ListInstances(cluster_pb.ListInstancesRequest(**fields))
    return [one.instance_id for one in instances.instances], instances.next_page_token


# --- health and reflection ----------------------------------------------------------------------


async def test_health_knows_services_and_deployments(cluster: Cluster, node: FakeNode) -> None:
    async with rpc.channel(cluster.address) as channel:
        stub = HealthStub(channel)

        async def serving(name: str) -> bool:
            call = stub.Check(health_pb2.HealthCheckRequest(service=name))
            if await call.code() == grpc.StatusCode.NOT_FOUND:
                return False
            return bool((await call).status == health_pb2.HealthCheckResponse.SERVING)

        for name in ("", "serverlessllm.v1.InferenceService", "serverlessllm.v1.FleetService"):
            assert await serving(name)
        assert not await serving("tiny")
        await cluster.caller.deploy()
        await assert_eventually(lambda: serving("tiny"))
        await cluster.caller.delete("tiny")

        async def ended() -> bool:
            return not await serving("tiny")

        await assert_eventually(ended)


async def test_health_can_be_watched(cluster: Cluster, node: FakeNode) -> None:
    async with rpc.channel(cluster.address) as channel:
        request = health_pb2.HealthCheckRequest(service="tiny")
        watch = HealthStub(channel).Watch(request, timeout=SECONDS)
        status = (await watch.read()).status
        assert status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        await cluster.caller.deploy()
        while status != health_pb2.HealthCheckResponse.SERVING:
            status = (await watch.read()).status
        watch.cancel()


async def test_reflection_names_every_service(cluster: Cluster) -> None:
    def services() -> list[str]:
        with grpc.insecure_channel(cluster.address) as channel:
            return list(ProtoReflectionDescriptorDatabase(channel).get_services())

    names = await asyncio.to_thread(services)
    assert {name.split(".")[-1] for name in names} >= {
        "DeploymentService",
        "InferenceService",
        "ClusterService",
        "FleetService",
        "Health",
    }
