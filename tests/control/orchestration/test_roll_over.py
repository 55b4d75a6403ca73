"""What runs when its deployment changes: replaced as others get ready, and never cut short."""

from dataclasses import replace
from typing import Any

import pytest
from serverlessllm.v1 import cluster_service_pb2 as cluster_pb
from serverlessllm.v1 import types_pb2 as pb

from sllm import errors
from sllm.control.cluster.specs import EngineConfig
from tests.control.clusters import Cluster, Stream
from tests.control.fake_node import MIB, FakeNode
from tests.control.shapes import deployment
from tests.support import assert_eventually

OLD, NEW = "transformers", "vllm"
KEPT: dict[str, Any] = {"min_replicas": 1, "max_replicas": 1}


@pytest.fixture
async def node(cluster: Cluster) -> FakeNode:
    """A node with both engines, the cluster's only one."""
    return await add_node(cluster, "n1")


async def add_node(cluster: Cluster, node_id: str) -> FakeNode:
    node = await cluster.add_node(node_id)
    node.engines = {OLD: True, NEW: True}
    node.send_delta()

    async def told() -> bool:
        return len((await cluster.caller.node(node_id)).engines) == 2

    await assert_eventually(told)
    return node


async def ready_on(cluster: Cluster) -> list[str]:
    """The engines of the instances that take requests."""
    found = await cluster.caller.instances()
    return sorted(one.engine for one in found if one.state == pb.INSTANCE_STATE_READY)


async def become(cluster: Cluster, *engines: str) -> None:
    """Returns once there are instances on these engines and no others, all of them ready."""

    async def there() -> bool:
        alone = len(await cluster.caller.instances()) == len(engines)
        return alone and await ready_on(cluster) == sorted(engines)

    await assert_eventually(there)


async def engine_of(stream: Stream, cluster: Cluster) -> str:
    (started,) = [one.started for one in stream.events if one.HasField("started")]
    found = await cluster.caller.instances()
    return next(one.engine for one in found if one.instance_id == started.instance_id)


async def busy(cluster: Cluster, node: FakeNode, **fields: Any) -> Stream:
    """A request that has its tokens and does not end."""
    node.script.before_finish.shut()
    return await cluster.caller.generate(**fields).until("tokens")


async def test_it_takes_requests_until_another_is_ready(cluster: Cluster, node: FakeNode) -> None:
    await cluster.caller.deploy(engine=OLD)
    first = await busy(cluster, node)
    node.script.before_ready.shut()
    await cluster.caller.deploy(engine=NEW)
    await assert_eventually(lambda: len(node.started()) == 2)
    second = await cluster.caller.generate().until("tokens")
    assert await engine_of(second, cluster) == OLD
    node.script.before_ready.open()

    async def new_takes_over() -> bool:
        return await ready_on(cluster) == [NEW]

    await assert_eventually(new_takes_over)
    third = await cluster.caller.generate().until("tokens")
    assert await engine_of(third, cluster) == NEW
    assert not node.cancelled
    node.script.before_finish.open()
    for stream in (first, second, third):
        assert (await stream.end()).text == "0 1 2 "
    await become(cluster, NEW)
    assert len(node.started()) == 2


async def test_an_idle_one_ends_at_once(cluster: Cluster, node: FakeNode) -> None:
    await cluster.caller.deploy(engine=OLD)
    await cluster.caller.complete()
    await cluster.caller.deploy(engine=NEW)
    await become(cluster)
    stream = await cluster.caller.complete()
    assert stream.receipt.engine == NEW


async def test_what_min_replicas_keeps_stays_until_then(cluster: Cluster, node: FakeNode) -> None:
    await cluster.caller.deploy(engine=OLD, **KEPT)
    await become(cluster, OLD)
    node.script.before_ready.shut()
    await cluster.caller.deploy(engine=NEW, **KEPT)
    await assert_eventually(lambda: len(node.started()) == 2)
    assert await ready_on(cluster) == [OLD]
    assert (await cluster.caller.complete()).receipt.engine == OLD
    node.script.before_ready.open()
    await become(cluster, NEW)


async def test_each_waits_for_one_that_replaces_it(cluster: Cluster, node: FakeNode) -> None:
    two: dict[str, Any] = {"min_replicas": 2, "max_replicas": 2}
    await cluster.caller.deploy(engine=OLD, **two)
    await become(cluster, OLD, OLD)
    node.script.before_ready.shut()
    await cluster.caller.deploy(engine=NEW, **two)
    await assert_eventually(lambda: len(node.started()) == 4)
    assert await ready_on(cluster) == [OLD, OLD]
    node.script.before_ready.open()
    await become(cluster, NEW, NEW)
    assert len(node.started()) == 4


async def test_it_goes_on_if_none_can_start_and_the_reason_is_told(
    cluster: Cluster, node: FakeNode
) -> None:
    await cluster.caller.deploy(engine=OLD, **KEPT)
    await become(cluster, OLD)
    node.script.start_errors = [errors.StartFailed("no such kernel")] * 2
    await cluster.caller.deploy(engine=NEW, **KEPT)

    async def told() -> bool:
        return "no such kernel" in (await cluster.caller.deployment("tiny")).message

    await assert_eventually(told)
    assert (await cluster.caller.complete()).receipt.engine == OLD
    await become(cluster, NEW)  # it is tried again by and by
    assert not (await cluster.caller.deployment("tiny")).message


async def test_what_it_was_before_is_what_it_is_again(cluster: Cluster, node: FakeNode) -> None:
    await cluster.caller.deploy(engine=OLD, **KEPT)
    await become(cluster, OLD)
    (before,) = await cluster.caller.instances()
    node.script.before_ready.shut()
    await cluster.caller.deploy(engine=NEW, **KEPT)
    await assert_eventually(lambda: len(node.started()) == 2)
    await cluster.caller.deploy(engine=OLD, **KEPT)
    node.script.before_ready.open()
    await become(cluster, OLD)
    (after,) = await cluster.caller.instances()
    assert after.instance_id == before.instance_id


async def test_a_start_of_before_ends_and_those_who_wait_get_the_other(
    cluster: Cluster, node: FakeNode
) -> None:
    await cluster.caller.deploy(engine=OLD)
    node.script.before_ready.shut()
    stream = cluster.caller.generate()
    await assert_eventually(lambda: len(node.started()) == 1)
    await cluster.caller.deploy(engine=NEW)
    await assert_eventually(lambda: len(node.started()) == 2)
    node.script.before_ready.open()
    assert (await stream.end()).receipt.engine == NEW
    await become(cluster, NEW)


async def test_without_room_for_both_the_idle_one_goes_first(
    cluster: Cluster, node: FakeNode
) -> None:
    filling = {**KEPT, "kv_cache_tokens": 64 * MIB // 1024}
    await cluster.caller.deploy(engine=OLD, **filling)
    await become(cluster, OLD)
    stream = await busy(cluster, node)
    await cluster.caller.deploy(engine=NEW, **filling)

    async def told() -> bool:
        return "until there is room" in (await cluster.caller.deployment("tiny")).message

    await assert_eventually(told)
    assert await ready_on(cluster) == [OLD]
    node.script.before_finish.open()
    await stream.end()
    await become(cluster, NEW)


async def test_it_is_replaced_after_a_restart_too(cluster: Cluster, node: FakeNode) -> None:
    await cluster.caller.deploy(engine=OLD, **KEPT)
    await become(cluster, OLD)
    node.script.before_ready.shut()
    await cluster.caller.deploy(engine=NEW, **KEPT)
    await cluster.restart_control()
    node.script.before_ready.open()
    await become(cluster, NEW)


async def test_a_start_of_before_a_restart_ends_as_well(cluster: Cluster, node: FakeNode) -> None:
    node.script.before_ready.shut()
    await cluster.caller.deploy(engine=OLD, **KEPT)
    await assert_eventually(lambda: len(node.started()) == 1)
    await cluster.stop_control()
    for instance in node.instances.values():
        instance.config.engine = NEW  # as if the deployment had been changed last of all
    await cluster.start()
    await cluster.wait_for_nodes(1)
    await assert_eventually(lambda: len(node.started()) == 2)
    node.script.before_ready.open()
    await become(cluster, OLD)


async def test_a_longer_context_replaces_it_and_other_policies_do_not(
    cluster: Cluster, node: FakeNode
) -> None:
    await cluster.caller.deploy(engine=OLD, kv_cache_tokens=512, **KEPT)
    await become(cluster, OLD)
    await cluster.caller.deploy(engine=OLD, kv_cache_tokens=512, keep_alive=1.0, **KEPT)
    await cluster.caller.complete()
    assert len(node.started()) == 1
    await cluster.caller.deploy(engine=OLD, kv_cache_tokens=1024, **KEPT)
    await assert_eventually(lambda: len(node.started()) == 2)
    await become(cluster, OLD)
    (instance,) = await cluster.caller.instances()
    assert instance.config.kv_cache_tokens == 1024


async def test_generations_do_not_move_between_engines(cluster: Cluster, node: FakeNode) -> None:
    await cluster.caller.deploy(engine=OLD)
    stream = await busy(cluster, node, request_id="r")
    await add_node(cluster, "n2")
    await cluster.caller.deploy(engine=NEW)
    with pytest.raises(errors.EngineUnavailable, match="can end there alone"):
        await cluster.caller.stream("Migrate", cluster_pb.MigrateRequest(request_id="r"))
    node.script.before_finish.open()
    assert (await stream.end()).text == "0 1 2 "
    assert not node.count("StartMigration")


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({}, True),
        ({"pack": True}, True),
        ({"kv_cache_tokens": 8192}, True),  # what it is if nothing is said
        ({"kv_cache_tokens": 4096}, False),
        ({"max_concurrency": 8}, False),
        ({"engine": NEW}, False),
        ({"dtype": "bfloat16"}, False),
    ],
)
def test_what_counts_as_the_same(change: dict[str, Any], same: bool) -> None:
    assert deployment().runs_as(replace(EngineConfig(), **change)) is same
