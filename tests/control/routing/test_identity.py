"""A deployment is one checkpoint until it is deployed anew, and so is every generation."""

from typing import Any

import pytest
from serverlessllm.v1 import cluster_service_pb2 as cluster_pb
from serverlessllm.v1 import inference_service_pb2 as inference_pb
from serverlessllm.v1 import node_service_pb2 as node_pb
from serverlessllm.v1 import types_pb2 as pb

from sllm import errors
from tests.control.clusters import Cluster, Stream
from tests.control.fake_node import FakeNode
from tests.support import assert_eventually

TOKENS = 6
AMID = 3
WHOLE = "".join(f"{index} " for index in range(TOKENS))


def starts(node: FakeNode) -> list[str]:
    """Identities of the starts that were asked for."""
    return [one.identity for one in node.calls if isinstance(one, node_pb.StartInstanceRequest)]


def continuations(node: FakeNode) -> list[str]:
    """Identities that requests went on with."""
    requests = [one for one in node.calls if isinstance(one, inference_pb.GenerateRequest)]
    return [one.continuation.identity for one in requests if one.HasField("continuation")]


@pytest.fixture
def halfway(node: FakeNode) -> FakeNode:
    """A node that stands still after some tokens of a generation."""
    node.script.tokens_before_gate = AMID
    node.script.amid_tokens.shut()
    return node


async def until_amid(stream: Stream) -> Stream:
    return await stream.until_tokens(AMID)


def replace_source(*nodes: FakeNode) -> None:
    for node in nodes:
        node.script.model.identity = "B"


async def test_a_start_says_what_the_source_must_be(cluster: Cluster, node: FakeNode) -> None:
    deployment = await cluster.caller.deploy()
    assert deployment.model.identity == "A"
    await cluster.caller.complete()
    assert starts(node) == ["A"]
    (promoted,) = [one for one in node.calls if isinstance(one, node_pb.PromoteRequest)]
    assert promoted.identity == "A"


async def test_a_changed_source_fails_starts_with_the_reason(
    cluster: Cluster, node: FakeNode
) -> None:
    await cluster.caller.deploy()
    replace_source(node)
    with pytest.raises(errors.SourceChanged):
        await cluster.caller.complete()


async def test_a_second_replica_is_of_the_same_checkpoint(cluster: Cluster, node: FakeNode) -> None:
    node.script.before_finish.shut()
    await cluster.caller.deploy(max_replicas=2, max_concurrency=1)
    first = await cluster.caller.generate().until("tokens")
    replace_source(node)
    second = cluster.caller.generate()
    await assert_eventually(lambda: len(starts(node)) == 2)
    node.script.before_finish.open()
    await first.end()
    await second.end()  # when it has waited for the instance of what was deployed
    assert second.text == first.text
    assert [one.identity for one in node.instances.values() if one.identity] == ["A"]


async def test_it_outlives_the_control_plane(cluster: Cluster, node: FakeNode) -> None:
    await cluster.caller.deploy()
    await cluster.restart_control()
    assert (await cluster.caller.deployment("tiny")).model.identity == "A"
    replace_source(node)
    with pytest.raises(errors.SourceChanged):
        await cluster.caller.complete()


async def test_failover_carries_it(cluster: Cluster, halfway: FakeNode) -> None:
    await cluster.caller.deploy()
    stream = await until_amid(cluster.caller.generate(max_tokens=TOKENS))
    other = await cluster.add_node("n2")
    await cluster.lose_node("n1")
    await stream.end()
    assert (stream.text, continuations(other)) == (WHOLE, ["A"])


async def test_failover_to_another_checkpoint_is_refused(
    cluster: Cluster, halfway: FakeNode
) -> None:
    await cluster.caller.deploy()
    stream = await until_amid(cluster.caller.generate(max_tokens=TOKENS))
    other = await cluster.add_node("n2")
    replace_source(other)
    await cluster.caller.deploy()  # on n1 nothing has changed
    await cluster.lose_node("n1")
    with pytest.raises(errors.SourceChanged):
        await stream.end()


async def test_resumption_carries_it(cluster: Cluster, node: FakeNode) -> None:
    await cluster.caller.deploy()
    rest = inference_pb.Continuation(token_ids=range(AMID), identity="other")
    asked: dict[str, Any] = {"max_tokens": TOKENS, "request_id": "r", "resume_from_sequence": AMID}
    with pytest.raises(errors.SourceChanged):
        await cluster.caller.complete(continuation=rest, **asked)
    rest.identity = "A"
    stream = await cluster.caller.complete(continuation=rest, **asked)
    assert stream.text == WHOLE[len("0 1 2 ") :]
    assert continuations(node) == ["other", "A"]


async def test_deploying_again_rolls_over(cluster: Cluster, halfway: FakeNode) -> None:
    await cluster.caller.deploy()
    old = await until_amid(cluster.caller.generate(max_tokens=TOKENS))
    replace_source(halfway)
    halfway.script.tokens_before_gate = None
    assert (await cluster.caller.deploy()).model.identity == "B"
    new = await cluster.caller.complete(max_tokens=TOKENS)

    halfway.script.amid_tokens.open()
    await old.end()
    assert (old.text, new.text) == (WHOLE, WHOLE)
    assert starts(halfway) == ["A", "B"]
    served = [one.started.identity for one in (old.events + new.events) if one.HasField("started")]
    assert served == ["A", "B"]
    await assert_eventually(lambda: {"B"} == _ready(halfway))


def _ready(node: FakeNode) -> set[str]:
    there = (one for one in node.instances.values() if one.state == pb.INSTANCE_STATE_READY)
    return {one.identity for one in there}


async def test_what_was_rolled_over_meanwhile_leaves_after_a_restart(
    cluster: Cluster, node: FakeNode
) -> None:
    await cluster.caller.deploy(min_replicas=1)
    await cluster.wait_for_instances(1)
    replace_source(node)
    for instance in node.instances.values():
        instance.identity = "A"
    await cluster.stop_control()
    for instance in node.instances.values():
        instance.identity = "of an earlier day"
    node.script.model.identity = "A"
    await cluster.start()
    await cluster.wait_for_nodes(1)
    await assert_eventually(lambda: {"A"} == _ready(node))


async def test_a_generation_of_before_does_not_move_to_what_came_after(
    cluster: Cluster, halfway: FakeNode
) -> None:
    await cluster.caller.deploy()
    stream = await until_amid(cluster.caller.generate(max_tokens=TOKENS, request_id="r"))
    other = await cluster.add_node("n2")
    replace_source(halfway, other)
    await cluster.caller.deploy()
    with pytest.raises(errors.SourceChanged):
        await cluster.caller.stream("Migrate", cluster_pb.MigrateRequest(request_id="r"))
    halfway.script.amid_tokens.open()
    await stream.end()
    assert stream.text == WHOLE
