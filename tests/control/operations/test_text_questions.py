"""Who is asked about text: the node nearest to the model, and the next if it cannot tell."""

import pytest
from serverlessllm.v1 import model_service_pb2 as pb

from sllm import errors
from tests.control.clusters import Cluster
from tests.control.fake_node import FakeNode

ELSEWHERE = [
    errors.SourceNotFound("not here"),
    errors.WorkerDied("died"),
    errors.NoCapacity("busy"),
    errors.ShuttingDown("going"),
    errors.EngineUnavailable("not any more"),
    errors.DeadlineExceeded("slow"),
    errors.NotServed("an earlier version"),
]


def asked(node: FakeNode) -> list[pb.CountTokensRequest]:
    return [one for one in node.calls if isinstance(one, pb.CountTokensRequest)]


@pytest.fixture
async def nodes(cluster: Cluster) -> list[FakeNode]:
    """Three, of which the last runs an instance, and the middle one has nothing."""
    nodes = [await cluster.add_node("n1")]
    await cluster.caller.deploy(engine="transformers", kv_cache_tokens=512)
    nodes += [await cluster.add_node("n2"), await cluster.add_node("n3")]
    return nodes


async def test_a_question_says_what_it_is_about(cluster: Cluster, nodes: list[FakeNode]) -> None:
    answer = await cluster.caller.count_tokens("tiny", "abc")
    assert (answer.tokens, answer.context_tokens) == (3, 512)
    ((question,),) = [found for node in nodes if (found := asked(node))]
    assert question.model == pb.ModelSource(
        source="file:///models/tiny", engine="transformers", identity="A"
    )


async def test_where_an_instance_runs_is_asked_first(
    cluster: Cluster, nodes: list[FakeNode]
) -> None:
    await cluster.caller.complete("tiny")
    (instance,) = await cluster.caller.instances()
    await cluster.caller.count_tokens("tiny", "abc")
    assert [node.node_id for node in nodes if asked(node)] == [instance.node_id]


@pytest.mark.parametrize("error", ELSEWHERE, ids=lambda one: one.reason)
async def test_another_node_is_asked_where_one_cannot_tell(
    cluster: Cluster, nodes: list[FakeNode], error: errors.SllmError
) -> None:
    for node in nodes[:2]:
        node.script.text_error = error
    assert (await cluster.caller.count_tokens("tiny", "abc")).tokens == 3
    nodes[2].script.text_error = error
    with pytest.raises(type(error)):
        await cluster.caller.count_tokens("tiny", "abc")


async def test_a_refusal_is_the_answer(cluster: Cluster, nodes: list[FakeNode]) -> None:
    for node in nodes:
        node.script.text_error = errors.InvalidPrompt("no")
    with pytest.raises(errors.InvalidPrompt):
        await cluster.caller.count_tokens("tiny", "abc")
    assert sum(len(asked(node)) for node in nodes) == 1


async def test_without_a_node_nobody_can_tell(cluster: Cluster) -> None:
    with pytest.raises(errors.DeploymentNotFound):
        await cluster.caller.count_tokens("tiny", "abc")
    await cluster.add_node("n1")
    await cluster.caller.deploy()
    await cluster.lose_node("n1")
    with pytest.raises(errors.NoNodes):
        await cluster.caller.count_tokens("tiny", "abc")
