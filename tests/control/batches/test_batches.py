"""Batches through a real control plane with fake nodes: taken whole, run, read, and ended."""

import asyncio
import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from serverlessllm.v1 import batch_service_pb2 as pb
from serverlessllm.v1 import inference_service_pb2 as inference_pb
from serverlessllm.v1 import types_pb2

from sllm import errors, rpc
from tests.control.clusters import SECONDS, Cluster, cluster_of
from tests.control.fake_node import FakeNode
from tests.support import assert_eventually

RUNNING, ENDED, CANCELLED = (
    pb.BATCH_STATE_RUNNING,
    pb.BATCH_STATE_ENDED,
    pb.BATCH_STATE_CANCELLED,
)


def request(name: str = "tiny", **fields: Any) -> inference_pb.GenerateRequest:
    return inference_pb.GenerateRequest(deployment=name, text="hello", **fields)


def requests(count: int, name: str = "tiny", **fields: Any) -> list[inference_pb.GenerateRequest]:
    return [request(name, **fields) for _ in range(count)]


async def begun(node: FakeNode, count: int) -> None:
    await assert_eventually(lambda: len(node.running) == count)


# --- from beginning to end --------------------------------------------------------------------


async def test_a_batch_starts_what_it_needs_and_every_request_has_one_answer(
    cluster: Cluster, node: FakeNode
) -> None:
    await cluster.caller.deploy(max_concurrency=4)
    batch = await cluster.caller.submit(requests(100, max_tokens=5), "many")
    assert (batch.batch_id, batch.requests) == ("many", 100)
    results = await cluster.caller.results("many")
    assert [one.number for one in results] == list(range(100))
    assert {one.request_id for one in results} == {str(number) for number in range(100)}
    assert all(list(one.answer.tokens.token_ids) == [0, 1, 2, 3, 4] for one in results)
    assert all(one.answer.tokens.text == "0 1 2 3 4 " for one in results)
    assert all(one.answer.finished.usage.completion_tokens == 5 for one in results)
    batch = await cluster.caller.batch("many")
    assert (batch.state, batch.finished, batch.failed) == (ENDED, 100, 0)
    assert batch.ended_at.seconds < batch.kept_until.seconds
    assert node.started() == ["tiny"]


async def test_an_instance_that_nobody_asked_for_leaves_with_the_last_of_a_batch(
    cluster: Cluster, node: FakeNode
) -> None:
    await cluster.caller.deploy(keep_alive=0.5)
    await cluster.caller.submit(requests(3), "few")
    await cluster.caller.results("few")
    await cluster.wait_for_instances(0)


async def test_samples_of_a_request_are_one_answer(cluster: Cluster, node: FakeNode) -> None:
    await cluster.caller.deploy(max_concurrency=2)
    sampling = types_pb2.SamplingParams(seed=2**64 - 1)
    asked = request(n=3, max_tokens=4, sampling=sampling, prompt_logprobs=0)
    await cluster.caller.submit([asked, *requests(2)], "b")
    told = {one.request_id: one.answer for one in await cluster.caller.results("b")}
    answer = told["0"]
    tokens = [answer.tokens, *(one.tokens for one in answer.more)]
    assert [list(one.token_ids) for one in tokens] == [[0, 1, 2, 3]] * 3
    assert answer.finished.usage.completion_tokens == 12
    assert [one.token_id for one in answer.prompt_logprobs.tokens] == [7, 8]
    assert not told["1"].more
    assert not told["1"].HasField("prompt_logprobs")
    sent = [one for one in node.calls if isinstance(one, inference_pb.GenerateRequest)]
    drawn = [one.sampling.seed for one in sent if "/choice/" in one.request_id]
    assert sorted(drawn) == [0, 1, 2**64 - 1]


async def test_results_are_read_from_any_number_on(cluster: Cluster, node: FakeNode) -> None:
    await cluster.caller.deploy(max_concurrency=1)
    node.script.tokens_before_gate = 1
    node.script.amid_tokens.shut()
    await cluster.caller.submit(requests(5), "b")
    await begun(node, 1)
    assert await cluster.caller.results("b", follow=False) == []
    node.script.amid_tokens.open()
    everything = await cluster.caller.results("b")
    assert await cluster.caller.results("b", 3) == everything[3:]
    assert await cluster.caller.results("b", 5) == []


async def test_what_fails_is_told_and_the_others_go_on(cluster: Cluster, node: FakeNode) -> None:
    await cluster.caller.deploy(max_concurrency=1)
    node.script.generate_errors = [errors.ContextExceeded("9 tokens, context of 4")]
    await cluster.caller.submit([request(request_id="long"), request(request_id="short")], "b")
    told = {one.request_id: one for one in await cluster.caller.results("b")}
    assert told["long"].failure.reason == "CONTEXT_EXCEEDED"
    assert "9 tokens" in told["long"].failure.message
    assert told["short"].answer.finished.reason == types_pb2.FINISH_REASON_LENGTH
    batch = await cluster.caller.batch("b")
    assert (batch.state, batch.finished, batch.failed) == (ENDED, 1, 1)


async def test_what_its_time_limit_ends_has_failed(cluster: Cluster, node: FakeNode) -> None:
    await cluster.caller.deploy(max_concurrency=1)
    node.script.before_finish.shut()
    await cluster.caller.submit(requests(3), "b", time_limit=0.5)
    results = await cluster.caller.results("b")
    assert [one.failure.reason for one in results] == ["DEADLINE_EXCEEDED"] * 3


async def test_a_time_limit_is_kept_behind_others(cluster: Cluster, node: FakeNode) -> None:
    await cluster.caller.deploy(max_concurrency=1)
    node.script.before_finish.shut()
    await cluster.caller.submit(requests(100), "first")
    await cluster.caller.submit(requests(3), "second", time_limit=0.5)
    results = await cluster.caller.results("second")
    assert [one.failure.reason for one in results] == ["DEADLINE_EXCEEDED"] * 3
    node.script.before_finish.open()
    assert len(await cluster.caller.results("first")) == 100


async def test_the_same_batch_may_be_submitted_again(cluster: Cluster, node: FakeNode) -> None:
    await cluster.caller.deploy()
    first = await cluster.caller.submit(requests(2), "b")
    await cluster.caller.results("b")
    again = await cluster.caller.submit(requests(2), "b")
    assert (again.batch_id, again.created_at) == ("b", first.created_at)
    with pytest.raises(errors.RequestIdInUse):
        await cluster.caller.submit(requests(3), "b")
    assert len(await cluster.caller.results("b")) == 2
    assert len(node.served()) == 2


async def test_batches_are_listed_page_by_page(cluster: Cluster, node: FakeNode) -> None:
    await cluster.caller.deploy()
    for name in ("a", "b", "c"):
        await cluster.caller.submit(requests(1), name)
    with rpc.typed_errors():
        page = await cluster.caller.batches.ListBatches(pb.ListBatchesRequest(page_size=2))
        rest = await cluster.caller.batches.ListBatches(
            pb.ListBatchesRequest(page_token=page.next_page_token)
        )
    assert [one.batch_id for one in (*page.batches, *rest.batches)] == ["a", "b", "c"]


# --- giving way -------------------------------------------------------------------------------


async def test_a_request_gets_the_slot_of_a_batch_which_goes_on_where_it_was(
    cluster: Cluster, node: FakeNode
) -> None:
    await cluster.caller.deploy(max_concurrency=2)
    node.script.tokens_before_gate = 2
    node.script.amid_tokens.shut()
    await cluster.caller.submit(requests(4, max_tokens=6), "b")
    await begun(node, 2)
    stream = await cluster.caller.generate().until("tokens")
    assert "queued" in stream.kinds
    node.script.amid_tokens.open()
    assert (await stream.end()).token_ids == [0, 1, 2]
    for one in await cluster.caller.results("b"):
        assert list(one.answer.tokens.token_ids) == [0, 1, 2, 3, 4, 5]
        assert one.answer.tokens.text == "0 1 2 3 4 5 "
    continued = [
        list(call.continuation.token_ids)
        for call in node.calls
        if isinstance(call, inference_pb.GenerateRequest)
    ]
    assert [0, 1] in continued


async def test_as_many_give_way_as_are_asked_for_and_no_more(
    cluster: Cluster, node: FakeNode
) -> None:
    await cluster.caller.deploy(max_concurrency=4)
    node.script.before_finish.shut()
    await cluster.caller.submit(requests(8), "b")
    await begun(node, 4)
    batched = set(node.running)
    streams = [await cluster.caller.generate().until("tokens") for _ in range(2)]
    await begun(node, 4)
    assert len(batched & node.running) == 2
    node.script.before_finish.open()
    for stream in streams:
        await stream.end()
    assert len(await cluster.caller.results("b")) == 8


async def test_who_comes_first_finds_a_slot_and_nobody_has_to_leave(
    cluster: Cluster, node: FakeNode
) -> None:
    await cluster.caller.deploy(max_concurrency=8)
    node.script.before_finish.shut()
    await cluster.caller.submit(requests(20), "b")
    await begun(node, 7)
    batched = set(node.running)
    stream = await cluster.caller.generate().until("tokens")
    assert batched <= node.running
    assert len(node.running) == 8
    node.script.before_finish.open()
    await stream.end()
    assert len(await cluster.caller.results("b")) == 20


async def test_requests_for_another_model_take_the_room_of_a_batch(tmp_path: Path) -> None:
    async with cluster_of(tmp_path, drain_patience_seconds=60.0) as cluster:
        node = await cluster.add_node("n1", dram_mib=15)
        await cluster.caller.deploy("a", "file:///models/a", max_concurrency=2)
        await cluster.caller.deploy("b", "file:///models/b")
        node.script.before_finish.shut()
        await cluster.caller.submit(requests(3, "a", max_tokens=4), "batch")
        await begun(node, 2)
        stream = await cluster.caller.generate("b").until("tokens")
        node.script.before_finish.open()
        await stream.end()
        # B stays for its keep_alive, then A has its turn again.
        await cluster.caller.delete("b")
        results = await cluster.caller.results("batch")
        assert [list(one.answer.tokens.token_ids) for one in results] == [[0, 1, 2, 3]] * 3
        assert node.started() == ["a", "b", "a"]


async def test_a_batch_ends_no_instance_that_somebody_has_used(tmp_path: Path) -> None:
    async with cluster_of(tmp_path) as cluster:
        node = await cluster.add_node("n1", dram_mib=15)
        await cluster.caller.deploy("a", "file:///models/a", keep_alive=2.0)
        await cluster.caller.deploy("b", "file:///models/b")
        await cluster.caller.complete("a")
        await cluster.caller.submit(requests(1, "b"), "batch")
        await cluster.caller.complete("a")
        assert node.started() == ["a"]
        assert len(await cluster.caller.results("batch")) == 1  # once A's keep_alive has passed
        assert node.started() == ["a", "b"]


async def test_batches_of_models_that_do_not_fit_together_take_turns(tmp_path: Path) -> None:
    async with cluster_of(tmp_path) as cluster:
        node = await cluster.add_node("n1", dram_mib=15)
        for name in ("a", "b", "c"):
            await cluster.caller.deploy(name, f"file:///models/{name}", max_concurrency=2)
        mixed = [request(name) for _ in range(20) for name in ("a", "b", "c")]
        await cluster.caller.submit(mixed, "batch")
        results = await cluster.caller.results("batch")
        assert all(one.HasField("answer") for one in results)
        assert len(results) == 60
        assert sorted(node.started()) == ["a", "b", "c"]


async def test_a_restart_makes_no_instance_one_that_nobody_has_used(tmp_path: Path) -> None:
    async with cluster_of(tmp_path) as cluster:
        node = await cluster.add_node("n1", dram_mib=15)
        await cluster.caller.deploy("a", "file:///models/a", keep_alive=60.0)
        await cluster.caller.deploy("b", "file:///models/b")
        await cluster.caller.complete("a")
        await cluster.restart_control()
        await cluster.caller.submit(requests(1, "b"), "batch")
        await cluster.caller.complete("a")
        assert node.started() == ["a"]
        await cluster.caller.delete("a")
        assert len(await cluster.caller.results("batch")) == 1


async def test_who_waits_is_not_told_to_wait_for_a_batch(cluster: Cluster, node: FakeNode) -> None:
    await cluster.caller.deploy(max_concurrency=1)
    node.script.before_finish.shut()
    slow = await cluster.caller.generate().until("tokens")
    await asyncio.sleep(0.3)  # what a request takes, as the control plane learns
    node.script.before_finish.open()
    await slow.end()
    node.script.before_finish.shut()
    await cluster.caller.submit(requests(3), "b")
    await begun(node, 1)
    stream = await cluster.caller.generate().until("tokens")
    queued = stream.events[0].queued
    assert (queued.position, queued.estimated_wait.ToNanoseconds()) == (0, 0)
    stream.call.cancel()
    node.script.before_finish.open()
    assert len(await cluster.caller.results("b")) == 3


async def test_a_full_queue_is_none_of_a_batch(tmp_path: Path) -> None:
    async with cluster_of(tmp_path, max_queued_per_deployment=1, max_queued=1) as cluster:
        node = await cluster.add_node("n1")
        await cluster.caller.deploy(max_concurrency=1)
        node.script.before_finish.shut()
        await cluster.caller.submit(requests(20), "b")
        await begun(node, 1)
        first = await cluster.caller.generate().until("tokens")
        second = await cluster.caller.generate().until("queued")
        with pytest.raises(errors.QueueFull):
            await cluster.caller.complete()
        node.script.before_finish.open()
        await first.end()
        await second.end()
        assert len(await cluster.caller.results("b")) == 20


# --- ends -------------------------------------------------------------------------------------


async def test_a_cancelled_batch_leaves_nothing_under_way(cluster: Cluster, node: FakeNode) -> None:
    await cluster.caller.deploy(max_concurrency=4)
    await cluster.caller.submit(requests(2), "other")
    await cluster.caller.results("other")
    node.script.before_finish.shut()
    await cluster.caller.submit(requests(200), "b")
    await begun(node, 4)
    with rpc.typed_errors():
        await cluster.caller.batches.CancelBatch(pb.CancelBatchRequest(batch_id="b"))
    await begun(node, 0)
    assert await cluster.caller.results("b") == []
    assert (await cluster.caller.batch("b")).state == CANCELLED
    served = len(node.served())
    node.script.before_finish.open()
    await cluster.caller.complete()
    assert len(node.served()) == served + 1


async def test_a_batch_is_forgotten_when_it_is_told_to(cluster: Cluster, node: FakeNode) -> None:
    await cluster.caller.deploy()
    node.script.before_finish.shut()
    await cluster.caller.submit(requests(1), "b")
    delete = pb.DeleteBatchRequest(batch_id="b")
    with pytest.raises(errors.BatchUnderWay), rpc.typed_errors():
        await cluster.caller.batches.DeleteBatch(delete, timeout=SECONDS)
    node.script.before_finish.open()
    await cluster.caller.results("b")
    with rpc.typed_errors():
        await cluster.caller.batches.DeleteBatch(delete, timeout=SECONDS)
    with pytest.raises(errors.BatchNotFound):
        await cluster.caller.batch("b")
    with pytest.raises(errors.BatchNotFound):
        await cluster.caller.results("b")
    await cluster.caller.submit(requests(2), "b")  # the id is free again
    assert len(await cluster.caller.results("b")) == 2


async def test_requests_of_a_deployment_that_is_deleted_fail(
    cluster: Cluster, node: FakeNode
) -> None:
    await cluster.caller.deploy(max_concurrency=1)
    node.script.before_finish.shut()
    await cluster.caller.submit(requests(40), "b")
    await begun(node, 1)
    await cluster.caller.delete("tiny")
    results = await cluster.caller.results("b")
    assert len(results) == 40
    assert {one.failure.reason for one in results} == {"CANCELLED", "DEPLOYMENT_NOT_FOUND"}


# --- faults -----------------------------------------------------------------------------------


async def test_a_restart_loses_nothing_and_does_nothing_twice(
    cluster: Cluster, node: FakeNode
) -> None:
    await cluster.caller.deploy(max_concurrency=2)
    node.script.tokens_before_gate = 2
    await cluster.caller.submit(requests(50, max_tokens=4), "b")

    async def some() -> bool:
        return (await cluster.caller.batch("b")).finished > 3

    await assert_eventually(some)
    node.script.amid_tokens.shut()
    before = await cluster.caller.results("b", follow=False)
    await cluster.restart_control()
    node.script.amid_tokens.open()
    results = await cluster.caller.results("b")
    assert results[: len(before)] == before
    assert {one.request_id for one in results} == {str(number) for number in range(50)}
    assert len(results) == 50
    assert all(list(one.answer.tokens.token_ids) == [0, 1, 2, 3] for one in results)


async def test_what_cannot_be_stored_waits_and_holds_up_nobody(
    tmp_path: Path, cluster: Cluster, node: FakeNode
) -> None:
    await cluster.caller.deploy(max_concurrency=1)
    node.script.before_finish.shut()
    await cluster.caller.submit(requests(3), "b")
    await begun(node, 1)
    path = tmp_path / "batches" / "batches.db"
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    node.script.before_finish.open()
    await assert_eventually(lambda: len(node.served()) == 3)
    for _ in range(2):
        with pytest.raises(errors.StateUnavailable), rpc.typed_errors():
            await cluster.caller.batches.CancelBatch(
                pb.CancelBatchRequest(batch_id="b"), timeout=SECONDS
            )
    other.rollback()
    other.close()
    assert len(await cluster.caller.results("b")) == 3


async def test_what_ended_long_ago_is_forgotten_once_and_not_what_has_its_name(
    tmp_path: Path,
) -> None:
    async with cluster_of(tmp_path, batch_retention_seconds=0.0) as cluster:
        await cluster.add_node()
        await cluster.caller.deploy()
        for _ in range(3):
            await cluster.caller.submit(requests(2), "b")

            async def gone() -> bool:
                with suppress(errors.BatchNotFound):
                    await cluster.caller.batch("b")
                    return False
                return True

            await assert_eventually(gone)
        await cluster.caller.complete()


async def test_no_more_batches_are_kept_than_may_be(tmp_path: Path) -> None:
    async with cluster_of(tmp_path, max_batches=2) as cluster:
        await cluster.add_node()
        await cluster.caller.deploy()
        for name in ("a", "b", "a"):
            await cluster.caller.submit(requests(1), name)
        with pytest.raises(errors.QueueFull):
            await cluster.caller.submit(requests(1), "c")


async def test_a_node_that_is_lost_costs_a_batch_no_request(tmp_path: Path) -> None:
    async with cluster_of(tmp_path) as cluster:
        first = await cluster.add_node("n1")
        await cluster.caller.deploy(max_concurrency=2)
        first.script.tokens_before_gate = 2
        first.script.amid_tokens.shut()
        await cluster.caller.submit(requests(10, max_tokens=4), "b")
        await begun(first, 2)
        await cluster.add_node("n2")
        await cluster.lose_node("n1")
        results = await cluster.caller.results("b")
        assert [list(one.answer.tokens.token_ids) for one in results] == [[0, 1, 2, 3]] * 10


async def test_what_fails_for_want_of_anybody_is_tried_again(
    cluster: Cluster, node: FakeNode
) -> None:
    await cluster.caller.deploy(max_concurrency=1)
    node.script.generate_errors = [errors.WorkerDied("gone")] * 3  # as many as the router tries
    await cluster.caller.submit(requests(1, max_tokens=4), "b")
    (result,) = await cluster.caller.results("b")
    assert list(result.answer.tokens.token_ids) == [0, 1, 2, 3]


async def test_a_model_that_fails_to_start_is_tried_again(cluster: Cluster, node: FakeNode) -> None:
    await cluster.caller.deploy()
    node.script.start_errors = [errors.StartFailed("no luck")] * 2
    await cluster.caller.submit(requests(2), "b")
    assert len([one for one in await cluster.caller.results("b") if one.HasField("answer")]) == 2


@pytest.mark.parametrize("tokens", [0, 1])
async def test_a_model_that_is_rolled_over_is_begun_anew(
    cluster: Cluster, node: FakeNode, tokens: int
) -> None:
    await cluster.caller.deploy(max_concurrency=1)
    node.script.tokens_before_gate = tokens
    (node.script.amid_tokens if tokens else node.script.before_tokens).shut()
    await cluster.caller.submit(requests(1, max_tokens=4), "b")
    await begun(node, 1)
    waiting = cluster.caller.generate()
    await waiting.until("started")  # the batch has given way
    node.script.model.identity = "B"
    await cluster.caller.deploy("tiny", "file:///models/tiny", max_concurrency=1)
    node.script.amid_tokens.open()
    node.script.before_tokens.open()
    await waiting.end()
    (result,) = await cluster.caller.results("b")
    assert list(result.answer.tokens.token_ids) == [0, 1, 2, 3]
    last = [one for one in node.calls if isinstance(one, inference_pb.GenerateRequest)][-1]
    assert last.text == "hello"  # and not the tokens that another tokenizer had made of it


# --- what is refused --------------------------------------------------------------------------

REFUSED = {
    "nothing": ([], errors.InvalidArgument),
    "an id twice": (
        [request(request_id="x"), request(request_id="x")],
        errors.InvalidArgument,
    ),
    "no prompt": ([inference_pb.GenerateRequest(deployment="tiny")], errors.InvalidPrompt),
    "no deployment": ([request("nobody")], errors.DeploymentNotFound),
    "sampling": (
        [request(sampling=types_pb2.SamplingParams(temperature=-1))],
        errors.InvalidSampling,
    ),
    "a form": (
        [request(structured_output=types_pb2.StructuredOutput(regex="("))],
        errors.InvalidStructuredOutput,
    ),
    "too long": (
        [
            request(),
            inference_pb.GenerateRequest(
                deployment="tiny", token_ids=types_pb2.TokenIds(ids=range(2000))
            ),
        ],
        errors.ContextExceeded,
    ),
    "priority": ([request(priority=1)], errors.InvalidArgument),
    "too many samples": ([request(n=129)], errors.InvalidArgument),
    "too many logprobs of the prompt": ([request(prompt_logprobs=21)], errors.InvalidArgument),
    "an instance": ([request(instance_id="i")], errors.InvalidArgument),
    "resumption": ([request(resume_from_sequence=0)], errors.InvalidArgument),
    "too many": (requests(11), errors.InvalidArgument),
    "too large": (
        [inference_pb.GenerateRequest(deployment="tiny", text="x" * 900) for _ in range(5)],
        errors.InvalidArgument,
    ),
}


@pytest.mark.parametrize("what", REFUSED)
async def test_one_bad_request_refuses_the_batch(tmp_path: Path, what: str) -> None:
    settings = {"max_batch_requests": 10, "max_batch_bytes": 4_000}
    if what == "too long":
        settings["max_batch_bytes"] = 1 << 20
    async with cluster_of(tmp_path, **settings) as cluster:
        node = await cluster.add_node()
        await cluster.caller.deploy()
        bad, error = REFUSED[what]
        with pytest.raises(error):
            await cluster.caller.submit(bad, "b")
        with pytest.raises(errors.BatchNotFound):
            await cluster.caller.batch("b")
        await cluster.caller.submit(requests(1), "b")
        assert len(await cluster.caller.results("b")) == 1
        assert len(node.served()) == 1


async def test_a_refusal_says_which_request_it_was(cluster: Cluster, node: FakeNode) -> None:
    await cluster.caller.deploy()
    bad = request(request_id="seven", sampling=types_pb2.SamplingParams(top_p=7))
    with pytest.raises(errors.InvalidSampling, match=r"'seven'.*number 2") as refusal:
        await cluster.caller.submit([*requests(2), bad])
    assert refusal.value.metadata["request_id"] == "seven"
    assert refusal.value.metadata["number"] == "2"


HEADERS = [
    [],
    [pb.SubmitBatchRequest()],
    [pb.SubmitBatchRequest(request=request())],
    [pb.SubmitBatchRequest(header=pb.BatchHeader())] * 2,
    [
        pb.SubmitBatchRequest(header=pb.BatchHeader()),
        pb.SubmitBatchRequest(request=request()),
    ],
    [
        pb.SubmitBatchRequest(header=pb.BatchHeader()),
        pb.SubmitBatchRequest(request=request()),
        pb.SubmitBatchRequest(end=pb.BatchEnd(requests=2)),
    ],
    [pb.SubmitBatchRequest(header=pb.BatchHeader(batch_id="a/b"))],
    [pb.SubmitBatchRequest(header=pb.BatchHeader(batch_id="x" * 129))],
    [pb.SubmitBatchRequest(header=pb.BatchHeader(time_limit=Duration(seconds=-1)))],
    [pb.SubmitBatchRequest(header=pb.BatchHeader(time_limit=Duration(seconds=40 * 86400)))],
]


@pytest.mark.parametrize("messages", HEADERS)
async def test_a_batch_has_one_header_and_it_comes_first_and_one_end(
    cluster: Cluster, node: FakeNode, messages: list[pb.SubmitBatchRequest]
) -> None:
    await cluster.caller.deploy()
    with pytest.raises(errors.InvalidArgument), rpc.typed_errors():
        await cluster.caller.batches.SubmitBatch(iter(messages), timeout=SECONDS)


async def test_a_caller_that_leaves_amid_a_batch_leaves_none(
    cluster: Cluster, node: FakeNode
) -> None:
    await cluster.caller.deploy()
    call = cluster.caller.batches.SubmitBatch()
    await call.write(pb.SubmitBatchRequest(header=pb.BatchHeader(batch_id="b")))
    for one in requests(600):
        await call.write(pb.SubmitBatchRequest(request=one))
    call.cancel()
    with pytest.raises(errors.BatchNotFound):
        await cluster.caller.batch("b")
    await cluster.caller.submit(requests(1), "b")
    assert len(await cluster.caller.results("b")) == 1
