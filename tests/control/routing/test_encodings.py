"""Requests of Embed and Score wait, start instances, fail over and end as those of Generate do."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from serverlessllm.v1 import cluster_service_pb2 as cluster_pb
from serverlessllm.v1 import embedding_service_pb2 as pb
from serverlessllm.v1 import types_pb2

from sllm import errors
from tests.control.clusters import Cluster, cluster_of
from tests.control.fake_node import FakeNode
from tests.support import assert_eventually

DIED = errors.WorkerDied("killed")
EMBEDS = types_pb2.ModelPurpose(
    task=types_pb2.MODEL_TASK_EMBED, dimensions=2, pooling="mean", normalizes=True
)
SCORES = types_pb2.ModelPurpose(
    task=types_pb2.MODEL_TASK_SCORE, labels=["yes"], activation="sigmoid"
)


@pytest.fixture
async def node(cluster: Cluster) -> FakeNode:
    """A node whose models embed."""
    node = await cluster.add_node("n1")
    embeds(node)
    return node


def embeds(node: FakeNode, purpose: types_pb2.ModelPurpose = EMBEDS) -> None:
    node.script.model.purpose.CopyFrom(purpose)
    node.script.model.kv_bytes_per_token = 0


async def in_line(cluster: Cluster, count: int) -> None:
    async def there() -> bool:
        return (await cluster.caller.deployment("tiny")).queued_requests == count

    await assert_eventually(there)


async def waiting_at(node: FakeNode, count: int = 1) -> None:
    await assert_eventually(lambda: node.script.before_tokens.waiting == count)


async def test_a_cold_request_starts_an_instance(cluster: Cluster, node: FakeNode) -> None:
    await cluster.caller.deploy()
    answer = await cluster.caller.embed("abc", "de")
    assert [list(one.values) for one in answer.embeddings] == [[3.0, 1.0], [2.0, 1.0]]
    assert answer.receipt.cold
    assert answer.receipt.from_tier == types_pb2.TIER_SSD
    assert answer.receipt.node_id == "n1"
    assert answer.receipt.instance_id in node.instances
    assert {phase.kind for phase in answer.receipt.phases} == {
        types_pb2.PHASE_KIND_QUEUED,
        types_pb2.PHASE_KIND_PLACED,
        types_pb2.PHASE_KIND_READ_SSD,
        types_pb2.PHASE_KIND_PREFILL,
    }
    again = await cluster.caller.embed("abc")
    assert not again.receipt.cold
    assert node.count("StartInstance") == 1


async def test_scores_go_the_same_way(cluster: Cluster, node: FakeNode) -> None:
    embeds(node, SCORES)
    await cluster.caller.deploy()
    answer = await cluster.caller.score("q", "abc", "d")
    assert [list(one.values) for one in answer.scores] == [[3.0], [1.0]]
    with pytest.raises(errors.NotServed, match="tiny does not embed; it scores: call Score"):
        await cluster.caller.embed("abc")


async def test_the_instance_ends_after_its_keep_alive(cluster: Cluster, node: FakeNode) -> None:
    await cluster.caller.deploy(keep_alive=0.1)
    await cluster.caller.embed("abc")
    await cluster.wait_for_instances(0)
    await cluster.caller.embed("abc", keep_alive=Duration(seconds=60))
    assert node.count("StartInstance") == 2
    await cluster.wait_for_instances(1)


async def test_slots_are_taken_and_given_back(cluster: Cluster, node: FakeNode) -> None:
    await cluster.caller.deploy(max_concurrency=1)
    await cluster.caller.embed("warm")
    node.script.before_tokens.shut()
    asked = [asyncio.create_task(cluster.caller.embed("a" * length)) for length in (1, 2, 3)]
    await waiting_at(node)
    await in_line(cluster, 2)
    node.script.before_tokens.open()
    answers = await asyncio.gather(*asked)
    assert [answer.embeddings[0].values[0] for answer in answers] == [1.0, 2.0, 3.0]


async def test_those_of_a_higher_priority_go_first(cluster: Cluster, node: FakeNode) -> None:
    await cluster.caller.deploy(max_concurrency=1)
    await cluster.caller.embed("warm")
    node.script.before_tokens.shut()
    first = asyncio.create_task(cluster.caller.embed("first"))
    await waiting_at(node)
    low = asyncio.create_task(cluster.caller.embed("low"))
    await in_line(cluster, 1)
    high = asyncio.create_task(cluster.caller.embed("high", priority=100))
    await in_line(cluster, 2)
    node.script.before_tokens.open()
    await asyncio.gather(first, low, high)
    texts = [one.inputs[0].text for one in node.calls if isinstance(one, pb.EmbedRequest)]
    assert texts == ["warm", "first", "high", "low"]


async def test_a_worker_that_dies_is_no_matter(cluster: Cluster, node: FakeNode) -> None:
    await cluster.caller.deploy()
    node.script.generate_errors.append(DIED)
    answer = await cluster.caller.embed("abc")
    assert list(answer.embeddings[0].values) == [3.0, 1.0]
    assert node.count("Embed") == node.count("StartInstance") == 2


async def test_tries_are_bounded(cluster: Cluster, node: FakeNode) -> None:
    await cluster.caller.deploy()
    node.script.generate_errors += [DIED, DIED, errors.WorkerDied("once too often")]
    with pytest.raises(errors.WorkerDied, match="once too often"):
        await cluster.caller.embed("abc")
    await assert_eventually(lambda: not node.script.generate_errors)


async def test_what_is_said_of_the_request_is_not_tried_again(
    cluster: Cluster, node: FakeNode
) -> None:
    await cluster.caller.deploy()
    node.script.generate_errors.append(errors.ContextExceeded("too long"))
    with pytest.raises(errors.ContextExceeded):
        await cluster.caller.embed("abc")
    assert node.count("Embed") == 1
    await cluster.wait_for_instances(1)


async def test_a_lost_node_is_no_matter(cluster: Cluster, node: FakeNode) -> None:
    await cluster.caller.deploy()
    node.script.before_tokens.shut()
    asked = asyncio.create_task(cluster.caller.embed("abc"))
    await waiting_at(node)
    embeds(await cluster.add_node("n2"))
    await cluster.lose_node("n1")
    answer = await asked
    assert answer.receipt.node_id == "n2"


async def test_who_leaves_ends_the_work(cluster: Cluster, node: FakeNode) -> None:
    await cluster.caller.deploy()
    node.script.before_tokens.shut()
    asked = asyncio.create_task(cluster.caller.embed("abc"))
    await waiting_at(node)
    asked.cancel()
    await assert_eventually(lambda: node.cancelled)
    (instance,) = node.instances.values()
    assert instance.running_requests == 0
    assert node.count("Cancel") == 0
    node.script.before_tokens.open()
    await cluster.caller.embed("abc")
    assert node.count("StartInstance") == 1


async def test_who_leaves_the_line_is_out_of_it(cluster: Cluster, node: FakeNode) -> None:
    await cluster.caller.deploy()
    node.script.before_ready.shut()
    asked = asyncio.create_task(cluster.caller.embed("abc"))
    await in_line(cluster, 1)
    asked.cancel()
    await in_line(cluster, 0)
    node.script.before_ready.open()
    await cluster.wait_for_instances(1)
    assert node.count("Embed") == 0


@pytest.mark.parametrize("gate", ["before_ready", "before_tokens"])
async def test_deadlines_are_kept(cluster: Cluster, node: FakeNode, gate: str) -> None:
    await cluster.caller.deploy()
    getattr(node.script, gate).shut()
    with pytest.raises(errors.DeadlineExceeded):
        await cluster.caller.embed("abc", timeout=0.5)
    await in_line(cluster, 0)
    getattr(node.script, gate).open()


async def test_a_full_queue_takes_no_more(tmp_path: Path) -> None:
    async with cluster_of(tmp_path, max_queued_per_deployment=1) as cluster:
        node = await cluster.add_node("n1")
        embeds(node)
        await cluster.caller.deploy()
        node.script.before_ready.shut()
        asked = asyncio.create_task(cluster.caller.embed("abc"))
        await in_line(cluster, 1)
        with pytest.raises(errors.QueueFull) as caught:
            await cluster.caller.embed("abc")
        assert caught.value.retry_after
        node.script.before_ready.open()
        await asked


async def test_what_is_deleted_ends(cluster: Cluster, node: FakeNode) -> None:
    await cluster.caller.deploy()
    node.script.before_tokens.shut()
    asked = asyncio.create_task(cluster.caller.embed("abc"))
    await waiting_at(node)
    await cluster.caller.delete("tiny")
    with pytest.raises(errors.Cancelled):
        await asked
    await assert_eventually(lambda: node.cancelled)


async def test_a_control_plane_that_goes_down_says_so(cluster: Cluster, node: FakeNode) -> None:
    await cluster.caller.deploy()
    node.script.before_tokens.shut()
    asked = asyncio.create_task(cluster.caller.embed("abc"))
    await waiting_at(node)
    await cluster.restart_control()
    with pytest.raises(errors.ShuttingDown):
        await asked
    node.script.before_tokens.open()
    assert (await cluster.caller.embed("abc")).embeddings


async def test_on_a_drained_node_it_ends_where_it_is(cluster: Cluster, node: FakeNode) -> None:
    await cluster.caller.deploy()
    node.script.before_tokens.shut()
    asked = asyncio.create_task(cluster.caller.embed("abc"))
    await waiting_at(node)
    other = await cluster.add_node("n2")
    embeds(other)
    drain = cluster_pb.DrainNodeRequest(node_id="n1")
    draining = asyncio.create_task(cluster.caller.stream("DrainNode", drain))

    def leaves() -> bool:
        return all(
            one.state == types_pb2.INSTANCE_STATE_DRAINING for one in node.instances.values()
        )

    await assert_eventually(leaves)
    assert not asked.done()
    node.script.before_tokens.open()
    answer = await asked
    await draining
    assert answer.receipt.node_id == "n1"
    assert other.count("StartInstance") == 0
    assert node.count("StartMigration") == 0


Change = Callable[[pb.EmbedRequest], object]

BAD: dict[str, tuple[Change, type[errors.SllmError], str]] = {
    "nothing": (lambda one: one.ClearField("inputs"), errors.InvalidPrompt, "0 inputs"),
    "too many": (
        lambda one: one.inputs.extend([pb.EmbedInput(text="a")] * 2048),
        errors.InvalidPrompt,
        "2049 inputs; give from 1 to 2048",
    ),
    "an empty one": (
        lambda one: one.inputs.add(),
        errors.InvalidPrompt,
        r"inputs\[1\] is empty",
    ),
    "no tokens": (
        lambda one: one.inputs[0].token_ids.SetInParent(),
        errors.InvalidPrompt,
        r"inputs\[0\] is empty",
    ),
    "too many tokens": (
        lambda one: one.inputs[0].token_ids.ids.extend([1] * 1025),
        errors.ContextExceeded,
        "1025 tokens, and the model sees 1024",
    ),
    "too long a text": (
        lambda one: one.inputs.add(text="a" * 200_000),
        errors.ContextExceeded,
        "200000 bytes",
    ),
    "dimensions": (
        lambda one: setattr(one, "dimensions", 1),
        errors.InvalidArgument,
        "2 alone: it was not made to be cut",
    ),
    "priority": (
        lambda one: setattr(one, "priority", 101),
        errors.InvalidArgument,
        "from -100 to 100, not 101",
    ),
    "keep_alive": (
        lambda one: one.keep_alive.FromSeconds(-1),
        errors.InvalidArgument,
        "keep_alive must be",
    ),
    "deployment": (
        lambda one: setattr(one, "deployment", "other"),
        errors.DeploymentNotFound,
        "other",
    ),
}


@pytest.mark.parametrize("case", BAD)
async def test_what_makes_no_sense_is_refused_before_it_waits(
    cluster: Cluster, node: FakeNode, case: str
) -> None:
    change, kind, message = BAD[case]
    await cluster.caller.deploy()
    request = pb.EmbedRequest(deployment="tiny", inputs=[pb.EmbedInput(text="abc")])
    change(request)
    with pytest.raises(kind, match=message):
        await cluster.caller.ask_encoder("Embed", request)
    assert node.count("StartInstance") == 0


BAD_SCORES: tuple[tuple[dict[str, Any], str], ...] = (
    ({"documents": []}, "0 documents"),
    ({"documents": [""]}, r"documents\[0\] is empty"),
    ({"documents": ["a"] * 2049}, "2049 documents"),
    ({"documents": ["a"] * 3, "queries": ["b"] * 2}, "2 queries and 3 documents"),
    ({"documents": ["a"], "queries": [""]}, r"queries\[0\] is empty"),
    ({"documents": ["a"]}, "how near they are to a query: give one"),
)


@pytest.mark.parametrize(("fields", "message"), BAD_SCORES)
async def test_scores_that_make_no_sense_are_refused(
    cluster: Cluster, node: FakeNode, fields: dict[str, Any], message: str
) -> None:
    await cluster.caller.deploy()
    request = pb.ScoreRequest(deployment="tiny", **fields)
    with pytest.raises(errors.InvalidPrompt, match=message):
        await cluster.caller.ask_encoder("Score", request)
    assert node.count("StartInstance") == 0


async def test_each_kind_of_model_refuses_what_others_do(cluster: Cluster, node: FakeNode) -> None:
    await cluster.caller.deploy()
    with pytest.raises(errors.NotServed, match="tiny does not generate; it embeds: call Embed"):
        await cluster.caller.complete()
    node.script.model.purpose.Clear()
    await cluster.caller.deploy("other", "file:///models/other")
    with pytest.raises(errors.NotServed, match="other does not embed; it generates text"):
        await cluster.caller.embed("abc", name="other")
    with pytest.raises(errors.NotServed, match="other does not score; it generates text"):
        await cluster.caller.score("abc", "def", name="other")
    assert node.count("StartInstance") == 0


async def test_what_a_model_is_for_outlives_a_restart(cluster: Cluster, node: FakeNode) -> None:
    model = (await cluster.caller.deploy()).model
    assert model.purpose == EMBEDS
    await cluster.restart_control()
    assert (await cluster.caller.deployment("tiny")).model.purpose == EMBEDS
    assert (await cluster.caller.embed("abc")).embeddings
