"""A stream whose instance or node is lost goes on elsewhere, from the tokens that were relayed."""

from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from serverlessllm.v1 import inference_service_pb2 as inference_pb
from serverlessllm.v1 import types_pb2 as pb

from sllm import errors
from tests.control.clusters import Cluster, Stream
from tests.control.fake_node import FakeNode
from tests.support import assert_eventually

TOKENS = 6
AMID = 3
DIED = errors.WorkerDied("killed")


def assert_whole(stream: Stream) -> None:
    """No token lost, none twice, and no gap in the sequence."""
    assert stream.text == "".join(f"{index} " for index in range(TOKENS))
    assert [event.sequence for event in stream.events] == list(range(len(stream.events)))
    assert stream.token_ids == list(range(TOKENS))
    begun = 0
    for tokens in (event.tokens for event in stream.events if event.HasField("tokens")):
        assert tokens.first_index == begun
        begun += len(tokens.token_ids)


def migrations(stream: Stream) -> list[inference_pb.Migrated]:
    return [event.migrated for event in stream.events if event.HasField("migrated")]


def last_request(node: FakeNode) -> inference_pb.GenerateRequest:
    requests = [one for one in node.calls if isinstance(one, inference_pb.GenerateRequest)]
    return requests[-1]


@pytest.fixture
def halfway(node: FakeNode) -> FakeNode:
    """A node that stands still after some tokens of a generation."""
    node.script.tokens_before_gate = AMID
    node.script.amid_tokens.shut()
    return node


async def until_amid(stream: Stream) -> Stream:
    return await stream.until_tokens(AMID)


async def test_a_lost_node(cluster: Cluster, halfway: FakeNode) -> None:
    await cluster.caller.deploy()
    stream = await until_amid(cluster.caller.generate(max_tokens=TOKENS))
    other = await cluster.add_node("n2")
    await cluster.lose_node("n1")
    await stream.end()

    assert_whole(stream)
    (migrated,) = migrations(stream)
    assert (migrated.from_node_id, migrated.to_node_id) == ("n1", "n2")
    assert migrated.to_instance_id in other.instances
    assert migrated.reason == inference_pb.MIGRATION_REASON_FAILOVER
    assert migrated.pause.ToNanoseconds() > 0
    assert stream.kinds.count("started") == 1
    assert stream.receipt.node_id == "n1", "the receipt tells of the first token"
    asked = last_request(other)
    assert list(asked.continuation.token_ids) == list(range(AMID))
    assert list(asked.token_ids.ids) == [7, 8], "the prompt is what the first instance made of it"


async def test_a_worker_that_dies(cluster: Cluster, node: FakeNode) -> None:
    await cluster.caller.deploy()
    node.script.tokens_before_gate = AMID
    node.script.amid_errors.append(DIED)
    stream = await cluster.caller.complete(max_tokens=TOKENS, token_ids=pb.TokenIds(ids=[5]))

    assert_whole(stream)
    assert node.count("StartInstance") == 2
    assert migrations(stream)[0].to_node_id == "n1"
    assert list(last_request(node).token_ids.ids) == [5]


@pytest.mark.parametrize("prompt", ["text", "token_ids"])
async def test_a_worker_that_dies_before_the_first_token(
    cluster: Cluster, node: FakeNode, prompt: str
) -> None:
    """The node knows its id: it is told that the request goes on, after no token."""
    await cluster.caller.deploy()
    node.script.generate_errors.append(DIED)
    given: dict[str, Any] = {"token_ids": pb.TokenIds(ids=[5])} if prompt == "token_ids" else {}
    stream = await cluster.caller.complete(max_tokens=TOKENS, **given)
    assert_whole(stream)
    first, again = [one for one in node.calls if isinstance(one, inference_pb.GenerateRequest)]
    assert not first.HasField("continuation")
    assert again.HasField("continuation")
    assert not again.continuation.token_ids
    assert list(again.token_ids.ids) == ([5] if given else [7, 8])


async def test_tries_at_one_token_are_bounded(cluster: Cluster, node: FakeNode) -> None:
    await cluster.caller.deploy()
    stream = cluster.caller.generate(max_tokens=TOKENS)
    node.script.tokens_before_gate = AMID
    node.script.amid_tokens.shut()
    await until_amid(stream)
    node.script.amid_errors.append(DIED)
    node.script.generate_errors += [DIED, errors.WorkerDied("once too often")]
    node.script.amid_tokens.open()
    with pytest.raises(errors.WorkerDied, match="once too often"):
        await stream.end()
    assert len(stream.token_ids) == AMID


async def test_who_does_not_want_it_is_told(cluster: Cluster, halfway: FakeNode) -> None:
    await cluster.caller.deploy()
    stream = await until_amid(cluster.caller.generate(max_tokens=TOKENS, no_failover=True))
    await cluster.add_node("n2")
    await cluster.lose_node("n1")
    with pytest.raises(errors.NodeLost):
        await stream.end()


async def test_without_another_node_it_fails_in_the_end(
    cluster: Cluster, halfway: FakeNode
) -> None:
    await cluster.caller.deploy()
    stream = await until_amid(cluster.caller.generate(max_tokens=TOKENS))
    await cluster.lose_node("n1")
    with pytest.raises(errors.NoNodes):
        await stream.end()


async def test_it_can_be_cancelled_on_its_way(cluster: Cluster, halfway: FakeNode) -> None:
    await cluster.caller.deploy()
    stream = cluster.caller.generate(max_tokens=TOKENS, request_id="moving")
    await until_amid(stream)
    other = await cluster.add_node("n2")
    other.script.before_ready.shut()
    await cluster.lose_node("n1")
    await stream.until("loading")
    await assert_eventually(lambda: other.script.before_ready.waiting)
    await cluster.caller.cancel("moving")
    with pytest.raises(errors.Cancelled):
        await stream.end()
    other.script.before_ready.open()


async def test_its_deadline_stays(cluster: Cluster, halfway: FakeNode) -> None:
    await cluster.caller.deploy()
    stream = cluster.caller.generate(max_tokens=TOKENS, timeout=2.0)

    async def fail_over() -> None:
        await until_amid(stream)
        other = await cluster.add_node("n2")
        other.script.before_ready.shut()
        await cluster.lose_node("n1")
        await stream.end()

    with pytest.raises(errors.DeadlineExceeded):  # sooner, on a machine that stands still
        await fail_over()
    for node in cluster.nodes.values():
        node.script.before_ready.open()


@pytest.mark.parametrize(
    ("sampling", "chosen"),
    [
        (pb.SamplingParams(), True),
        (pb.SamplingParams(temperature=0.7), True),
        (pb.SamplingParams(temperature=0), False),
    ],
)
async def test_what_is_drawn_can_be_drawn_again(
    cluster: Cluster, node: FakeNode, sampling: pb.SamplingParams, chosen: bool
) -> None:
    await cluster.caller.deploy()
    await cluster.caller.complete(sampling=sampling)
    assert last_request(node).sampling.HasField("seed") == chosen
    await cluster.caller.complete(sampling=pb.SamplingParams(seed=0))
    assert last_request(node).sampling.seed == 0


async def test_a_caller_reads_on_from_the_tokens_that_it_has(
    cluster: Cluster, node: FakeNode
) -> None:
    await cluster.caller.deploy()
    stream = await cluster.caller.complete(
        max_tokens=TOKENS,
        request_id="again",
        token_ids=pb.TokenIds(ids=[5]),
        resume_from_sequence=7,
        continuation=inference_pb.Continuation(token_ids=range(AMID)),
    )
    sequences = [event.sequence for event in stream.events]
    assert sequences == list(range(7, 7 + len(sequences)))
    assert "queued" not in stream.kinds
    assert stream.text == "".join(f"{index} " for index in range(AMID, TOKENS))


async def test_it_reads_on_where_the_generation_goes_on(cluster: Cluster, node: FakeNode) -> None:
    other = await cluster.add_node("n2")
    await cluster.caller.deploy(min_replicas=2, max_replicas=2)
    await cluster.wait_for_instances(2)
    for one in (node, other):
        (instance,) = one.instances.values()
        instance.unread_request_ids[:] = ["unread-on-" + one.node_id]
        one.send_full()

    async def known() -> bool:
        found = await cluster.caller.instances()
        return all(one.unread_request_ids for one in found)

    await assert_eventually(known)
    for one in (other, node):
        request_id = "unread-on-" + one.node_id
        await cluster.caller.complete(request_id=request_id, resume_from_sequence=1)
        assert request_id in one.served()


async def test_what_nobody_reads_can_be_cancelled(cluster: Cluster, node: FakeNode) -> None:
    await cluster.caller.deploy(min_replicas=1)
    await cluster.wait_for_instances(1)
    (instance,) = node.instances.values()
    instance.unread_request_ids[:] = ["unread"]
    node.send_full()

    async def known() -> bool:
        return any(one.unread_request_ids for one in await cluster.caller.instances())

    await assert_eventually(known)
    await cluster.caller.cancel("unread", "last")
    (told,) = (one for one in node.calls if isinstance(one, inference_pb.CancelRequest))
    assert told.attempt == "last", "the node knows who reads it by then"
    with pytest.raises(errors.RequestNotFound):
        await cluster.caller.cancel("another")


async def test_a_late_cancel_leaves_the_next_attempt_alone(
    cluster: Cluster, halfway: FakeNode
) -> None:
    await cluster.caller.deploy()
    options: dict[str, Any] = {"max_tokens": TOKENS, "request_id": "mine"}
    first = await until_amid(cluster.caller.generate(**options, attempt="first"))
    halfway.script.before_finish.shut()
    second = cluster.caller.generate(
        **options,
        attempt="second",
        resume_from_sequence=len(first.events),
        continuation=inference_pb.Continuation(token_ids=range(AMID)),
    )
    with pytest.raises(errors.Cancelled):
        await first.end()
    with pytest.raises(errors.RequestNotFound, match="another reads it"):
        await cluster.caller.cancel("mine", "first")
    await cluster.caller.cancel("mine", "second")
    with pytest.raises(errors.Cancelled):
        await second.end()
    halfway.script.before_finish.open()


async def test_a_newer_reader_takes_the_place_of_the_one_before(
    cluster: Cluster, halfway: FakeNode
) -> None:
    await cluster.caller.deploy()
    first = await until_amid(cluster.caller.generate(max_tokens=TOKENS, request_id="mine"))
    second = cluster.caller.generate(
        max_tokens=TOKENS,
        request_id="mine",
        resume_from_sequence=len(first.events),
        continuation=inference_pb.Continuation(token_ids=range(AMID)),
    )
    with pytest.raises(errors.Cancelled):
        await first.end()
    halfway.script.amid_tokens.open()
    await second.end()
    assert first.text + second.text == "".join(f"{index} " for index in range(TOKENS))


async def test_nodes_are_told_when_a_caller_leaves(cluster: Cluster, halfway: FakeNode) -> None:
    """Hanging up alone would let the generation linger."""
    await cluster.caller.deploy()
    stream = await until_amid(cluster.caller.generate(max_tokens=TOKENS, request_id="left"))
    assert last_request(halfway).linger.ToNanoseconds() > 0
    stream.call.cancel()
    await assert_eventually(lambda: halfway.count("Cancel"))


async def test_what_may_linger_is_left_alone(cluster: Cluster, halfway: FakeNode) -> None:
    await cluster.caller.deploy()
    linger = Duration(seconds=60)
    stream = await until_amid(cluster.caller.generate(max_tokens=TOKENS, linger=linger))
    assert last_request(halfway).linger == linger
    stream.call.cancel()
    await assert_eventually(lambda: halfway.cancelled)
    assert not halfway.count("Cancel")


async def test_what_lingers_is_read_on_where_it_is(cluster: Cluster, halfway: FakeNode) -> None:
    """Its node has not told yet that nobody reads it, and another has a free instance as well."""
    await cluster.add_node("n2")
    await cluster.caller.deploy(max_replicas=2, min_replicas=2, max_concurrency=1)
    await cluster.wait_for_instances(2)
    for node in cluster.nodes.values():
        node.script.tokens_before_gate = AMID
        node.script.amid_tokens.shut()
    # It is served by the one that would not be chosen if both were free.
    other = await until_amid(cluster.caller.generate(max_tokens=TOKENS))
    stream = await until_amid(
        cluster.caller.generate(max_tokens=TOKENS, request_id="mine", linger=Duration(seconds=60))
    )
    other.call.cancel()
    (there,) = [node for node in cluster.nodes.values() if "mine" in node.running]
    await assert_eventually(lambda: sum(len(one.running) for one in cluster.nodes.values()) == 1)
    stream.call.cancel()
    again = cluster.caller.generate(
        max_tokens=TOKENS,
        request_id="mine",
        linger=Duration(seconds=60),
        resume_from_sequence=len(stream.events),
        continuation=inference_pb.Continuation(token_ids=range(AMID)),
    )
    await again.end()
    assert there.served().count("mine") == 2
    assert [node for node in cluster.nodes.values() if "mine" in node.served()] == [there]
    assert stream.text + again.text == "".join(f"{index} " for index in range(TOKENS))


async def test_what_may_linger_ends_when_it_is_cancelled(
    cluster: Cluster, halfway: FakeNode
) -> None:
    await cluster.caller.deploy()
    linger = Duration(seconds=60)
    stream = await until_amid(
        cluster.caller.generate(max_tokens=TOKENS, request_id="mine", linger=linger)
    )
    await cluster.caller.cancel("mine")
    with pytest.raises(errors.Cancelled):
        await stream.end()
    await assert_eventually(lambda: halfway.count("Cancel"))


def of_prompt(stream: Stream) -> list[int]:
    """What was told of the prompt, in order and without gaps."""
    told = [event.prompt_logprobs for event in stream.events if event.HasField("prompt_logprobs")]
    firsts = [one.first_index for one in told]
    begun = [sum(len(each.tokens) for each in told[:place]) for place in range(len(told))]
    assert [first - firsts[0] for first in firsts] == begun
    return [token.token_id for one in told for token in one.tokens]


@pytest.mark.parametrize("failures", [0, 1, 2])
async def test_the_prompts_logprobs_are_told_once(
    cluster: Cluster, node: FakeNode, failures: int
) -> None:
    await cluster.caller.deploy()
    node.script.generate_errors += [DIED] * failures
    node.script.tokens_before_gate = AMID
    node.script.amid_errors.append(DIED)
    stream = await cluster.caller.complete(max_tokens=TOKENS, prompt_logprobs=0)
    assert_whole(stream)
    assert of_prompt(stream) == [7, 8]
    assert stream.kinds.index("prompt_logprobs") < stream.kinds.index("tokens")


@pytest.mark.parametrize("told", [0, 1, 2])
async def test_who_reads_on_is_told_what_is_lacking_of_the_prompt(
    cluster: Cluster, node: FakeNode, told: int
) -> None:
    await cluster.caller.deploy()
    had = inference_pb.Continuation(prompt_logprobs=told)
    asked: dict[str, Any] = {"max_tokens": TOKENS, "request_id": "r", "prompt_logprobs": 0}
    stream = await cluster.caller.complete(resume_from_sequence=2, continuation=had, **asked)
    assert of_prompt(stream) == [7, 8][told:]
    assert [event.sequence for event in stream.events] == list(range(2, 2 + len(stream.events)))


async def test_of_several_samples_the_first_tells_of_the_prompt(
    cluster: Cluster, node: FakeNode
) -> None:
    await cluster.caller.deploy()
    stream = await cluster.caller.complete(n=3, prompt_logprobs=0)
    assert of_prompt(stream) == [7, 8]
