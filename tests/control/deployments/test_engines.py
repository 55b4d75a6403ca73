"""Which engine a deployment is for, and the nodes that have it."""

import pytest
from serverlessllm.v1 import cluster_service_pb2 as cluster_pb
from serverlessllm.v1 import node_service_pb2 as node_pb
from serverlessllm.v1 import types_pb2 as pb

from sllm import errors
from tests.control.clusters import Cluster
from tests.control.fake_node import FakeNode
from tests.support import assert_eventually


async def with_engines(cluster: Cluster, node_id: str, *engines: str) -> FakeNode:
    """A node that reports these, the one that it prefers first."""
    node = await cluster.add_node(node_id)
    node.engines = dict.fromkeys(engines, True)
    node.send_delta()

    async def told() -> bool:
        found = (await cluster.caller.node(node_id)).engines
        return [one.name for one in found if one.ready] == list(engines)

    await assert_eventually(told)
    return node


def started_on(node: FakeNode) -> list[str]:
    """The engines of the instances that it was asked for."""
    asked = [one for one in node.calls if isinstance(one, node_pb.StartInstanceRequest)]
    return [one.engine.engine for one in asked]


async def test_what_a_node_prefers_is_found_and_told_everywhere(cluster: Cluster) -> None:
    node = await with_engines(cluster, "n1", "vllm", "transformers")
    deployed = await cluster.caller.deploy()
    assert deployed.engine.engine == "vllm"
    stream = await cluster.caller.complete()
    assert stream.receipt.engine == "vllm"
    assert started_on(node) == ["vllm"]
    promotions = [one for one in node.calls if isinstance(one, node_pb.PromoteRequest)]
    assert [one.engine for one in promotions] == ["vllm"]
    request = cluster_pb.ExplainPlacementRequest(deployment="tiny")
    assert (await cluster.caller.ask("ExplainPlacement", request)).engine == "vllm"
    await cluster.restart_control()
    assert (await cluster.caller.deployment("tiny")).engine.engine == "vllm"


async def test_an_engine_that_no_node_has_is_refused_with_what_to_do(cluster: Cluster) -> None:
    await with_engines(cluster, "n1", "transformers")
    with pytest.raises(errors.EngineUnavailable, match=r"'vllm', they have transformers.*auto"):
        await cluster.caller.deploy(engine="vllm")
    with pytest.raises(errors.InvalidArgument, match="known: auto, vllm, transformers"):
        await cluster.caller.deploy(engine="llama.cpp")
    with pytest.raises(errors.InvalidArgument, match="at least 32 on vllm"):
        await cluster.caller.deploy(engine="vllm", kv_cache_tokens=8)


async def test_a_node_of_an_earlier_version_has_transformers(
    cluster: Cluster, node: FakeNode
) -> None:
    assert (await cluster.caller.deploy()).engine.engine == "transformers"
    with pytest.raises(errors.EngineUnavailable):
        await cluster.caller.deploy(name="other", engine="vllm")


async def test_the_node_that_prefers_vllm_is_asked_first(cluster: Cluster) -> None:
    await with_engines(cluster, "n1", "transformers")
    await with_engines(cluster, "n2", "vllm", "transformers")
    assert (await cluster.caller.deploy()).engine.engine == "vllm"


async def test_starts_go_where_the_engine_is(cluster: Cluster) -> None:
    without = await with_engines(cluster, "n1", "transformers")
    has = await with_engines(cluster, "n2", "vllm")
    await cluster.caller.deploy(engine="vllm", min_replicas=2, max_replicas=2)
    await cluster.wait_for_instances(2)
    assert started_on(has) == ["vllm", "vllm"]
    assert not started_on(without)
    assert not without.count("Promote")
    assert {one.engine for one in await cluster.caller.instances()} == {"vllm"}


async def test_a_policy_that_changes_leaves_the_engine_as_it_is(cluster: Cluster) -> None:
    node = await with_engines(cluster, "n1", "transformers")
    await cluster.caller.deploy()
    node.engines = {"vllm": True, "transformers": True}
    node.send_delta()

    async def told() -> bool:
        return len((await cluster.caller.node("n1")).engines) == 2

    await assert_eventually(told)
    again = await cluster.caller.deploy(max_replicas=2)
    assert again.engine.engine == "transformers"
    named = await cluster.caller.deploy(engine="vllm", max_replicas=2)
    assert named.engine.engine == "vllm"


async def test_an_engine_that_does_not_run_a_model_any_more_is_chosen_anew(
    cluster: Cluster,
) -> None:
    node = await with_engines(cluster, "n1", "vllm", "transformers")
    await cluster.caller.deploy()
    node.refusing = "vllm"
    assert (await cluster.caller.deploy()).engine.engine == "transformers"


async def test_requests_hear_that_the_engine_is_nowhere(cluster: Cluster) -> None:
    await with_engines(cluster, "n1", "transformers")
    await with_engines(cluster, "n2", "vllm")
    await cluster.caller.deploy(engine="vllm")
    await cluster.lose_node("n2")
    with pytest.raises(errors.NoNodes, match="none that is connected has vllm"):
        await cluster.caller.complete()


async def test_what_fits_no_node_on_one_engine_may_fit_on_another(cluster: Cluster) -> None:
    """An engine that copies weights needs more memory than one that does not."""
    node = await with_engines(cluster, "n1", "vllm", "transformers")
    node.memory = pb.NodeMemory(capacity_bytes=100, instance_bytes=64)
    node.script.model.private_bytes = 37
    node.send_delta()

    async def told() -> bool:
        return (await cluster.caller.node("n1")).HasField("memory")

    await assert_eventually(told)
    with pytest.raises(errors.ModelTooLarge, match="101 bytes of memory"):
        await cluster.caller.deploy(engine="vllm")
    assert (await cluster.caller.deploy()).engine.engine == "transformers"
    node.script.model.private_bytes = 36
    assert (await cluster.caller.deploy(name="small")).engine.engine == "vllm"
    node.refusing, node.script.model.private_bytes = "transformers", 37
    with pytest.raises(errors.ModelTooLarge, match="101 bytes of memory"):
        await cluster.caller.deploy(name="other")


async def with_devices(cluster: Cluster, node_id: str, count: int) -> FakeNode:
    """A node with vLLM, of whose devices so many may run an instance."""
    node = await with_engines(cluster, node_id, "vllm")
    node.together = count
    node.send_delta()

    async def told() -> bool:
        return (await cluster.caller.node(node_id)).max_tensor_parallel == count

    await assert_eventually(told)
    return node


async def test_who_has_so_many_devices_is_asked_whether_a_model_can_be_divided(
    cluster: Cluster,
) -> None:
    """Whoever could not start it may judge it otherwise; all are asked where nobody could."""
    few, many = [await with_devices(cluster, f"n{count}", count) for count in (1, 4)]
    await cluster.caller.deploy(tensor_parallel=4)
    assert not few.count("InspectSource")
    assert many.count("InspectSource")
    with pytest.raises(errors.ModelTooLarge, match="tensor_parallel is 5"):
        await cluster.caller.deploy(name="wider", tensor_parallel=5)


async def test_another_number_of_devices_is_judged_anew_or_refused(cluster: Cluster) -> None:
    """A policy may change while nobody sees the source; what a part takes is not known then."""
    node = await with_devices(cluster, "n1", 4)
    before = await cluster.caller.deploy(tensor_parallel=2)
    node.script.inspect_error = errors.SourceNotFound("it is not there")
    again = await cluster.caller.deploy(tensor_parallel=2, max_replicas=3)
    assert again.scaling.max_replicas == 3
    for count in (1, 4):
        with pytest.raises(errors.SourceNotFound):
            await cluster.caller.deploy(tensor_parallel=count)
    after = await cluster.caller.deployment("tiny")
    assert after.engine.tensor_parallel == 2
    assert after.model.identity == before.model.identity
