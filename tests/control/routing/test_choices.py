"""Several samples of one prompt, as one stream."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serverlessllm.v1 import cluster_service_pb2 as cluster_pb
from serverlessllm.v1 import inference_service_pb2 as inference_pb
from serverlessllm.v1 import types_pb2 as pb

from sllm import errors
from sllm.control.routing.choices import Merger
from sllm.control.wire import choices
from sllm.sampling import MAX_SEED
from tests.control.clusters import Cluster, Stream, cluster_of
from tests.control.fake_node import FakeNode
from tests.support import assert_eventually

Response = inference_pb.GenerateResponse
TOKENS = 6
AMID = 3


# --- merging ----------------------------------------------------------------------------------


def told(choice: int, tokens: int, loads: int) -> list[Response]:
    """What the router gives of one sample."""
    events = [Response(queued=inference_pb.Queued(position=choice))]
    events += [Response(loading=pb.Loading(loaded_bytes=choice)) for _ in range(loads)]
    events.append(Response(started=inference_pb.Started(prompt_token_ids=[7, 8])))
    for index in range(tokens):
        if index == 1:
            events.append(Response(migrated=inference_pb.Migrated(to_node_id=str(choice))))
        part = inference_pb.Tokens(first_index=index, token_ids=[100 * choice + index])
        events.append(Response(tokens=part))
    receipt = pb.Receipt(node_id=str(choice))
    receipt.time_to_first_token.FromNanoseconds(1000 - choice)
    usage = pb.Usage(prompt_tokens=2, completion_tokens=tokens, cached_prompt_tokens=2 * choice)
    stop = str(choice)
    events.append(Response(finished=inference_pb.Finished(usage=usage, receipt=receipt, stop=stop)))
    for sequence, event in enumerate(events):
        event.sequence = sequence
    return events


@st.composite
def interleavings(draw: st.DrawFn) -> tuple[list[list[Response]], list[int]]:
    """What is told of some samples, and whose turn it is."""
    n = draw(st.integers(2, 5))
    scripts = [
        told(choice, draw(st.integers(0, 6)), draw(st.integers(0, 3))) for choice in range(n)
    ]
    turns = [choice for choice, script in enumerate(scripts) for _ in script]
    return scripts, draw(st.permutations(turns))


@given(interleavings())
def test_any_interleaving_is_one_stream(drawn: tuple[list[list[Response]], list[int]]) -> None:
    scripts, turns = drawn
    n = len(scripts)
    left = [iter(script) for script in scripts]
    merger = Merger(n, 1, {})
    seen: list[Response] = []
    for turn in turns:
        assert not merger.complete
        if event := merger.take(turn, next(left[turn])):
            seen.append(event)
    assert merger.complete
    seen.append(merger.end())

    assert [event.sequence for event in seen] == list(range(1, 1 + len(seen)))
    kinds = [event.WhichOneof("event") for event in seen]
    assert "queued" not in kinds
    assert kinds[-1] == "finished"
    assert len({event.loading.loaded_bytes for event in seen if event.HasField("loading")}) <= 1
    assert sum(bool(event.started.prompt_token_ids) for event in seen) == 1
    for choice in range(n):
        mine = [event for event in seen[:-1] if event.choice == choice]
        order = [kind for event in mine if (kind := event.WhichOneof("event")) != "loading"]
        expected = [
            str(event.WhichOneof("event")).replace("finished", "choice_finished")
            for event in told(choice, sum(event.HasField("tokens") for event in mine), 0)[1:]
        ]
        assert order == expected
        tokens = [token for event in mine for token in event.tokens.token_ids]
        assert tokens == [100 * choice + index for index in range(len(tokens))]
    end, generated = seen[-1].finished, kinds.count("tokens")
    assert end.usage == pb.Usage(prompt_tokens=2, completion_tokens=generated)
    assert end.receipt.node_id == str(n - 1), "whose first token came first"
    assert end.stop == "0"


@pytest.mark.parametrize("seed", [0, 41, MAX_SEED - 1, MAX_SEED])
def test_each_draws_with_a_seed_of_its_own(seed: int) -> None:
    request = inference_pb.GenerateRequest(
        request_id="r", n=4, sampling=pb.SamplingParams(seed=seed)
    )
    ones = dict(choices.requests(request, {}))
    assert [one.sampling.seed for one in ones.values()] == [
        (seed + choice) % (MAX_SEED + 1) for choice in range(4)
    ]
    assert [one.request_id for one in ones.values()] == [f"r/choice/{one}" for one in range(4)]
    assert not any(one.HasField("n") for one in ones.values())


# --- served -----------------------------------------------------------------------------------


def tokens_of(events: Sequence[Response], choice: int) -> list[int]:
    mine = [event for event in events if event.choice == choice]
    return [token for event in mine for token in event.tokens.token_ids]


def assert_whole(stream: Stream, n: int, tokens: int = TOKENS) -> None:
    """No token lost, none twice, and no gap in the sequence."""
    assert [event.sequence for event in stream.events] == list(range(len(stream.events)))
    assert stream.kinds[-1] == "finished"
    ends = [event.choice for event in stream.events if event.HasField("choice_finished")]
    assert sorted(ends) == list(range(n))
    for choice in range(n):
        assert tokens_of(stream.events, choice) == list(range(tokens))
    assert stream.events[-1].finished.usage.completion_tokens == n * tokens


def asked(node: FakeNode) -> list[inference_pb.GenerateRequest]:
    return [one for one in node.calls if isinstance(one, inference_pb.GenerateRequest)]


async def nothing_is_left(cluster: Cluster, *nodes: FakeNode) -> None:
    async def nothing() -> bool:
        deployment = await cluster.caller.deployment("tiny")
        return not deployment.queued_requests and not any(node.running for node in nodes)

    await assert_eventually(nothing)


@pytest.fixture
def halfway(node: FakeNode) -> FakeNode:
    """A node that stands still after some tokens of each generation."""
    node.script.tokens_before_gate = AMID
    node.script.amid_tokens.shut()
    return node


@pytest.fixture
async def small(tmp_path: Path) -> AsyncIterator[Cluster]:
    """A control plane where few requests may wait."""
    async with cluster_of(tmp_path, max_queued_per_deployment=2) as cluster:
        yield cluster


async def until_amid(stream: Stream, n: int) -> Stream:
    return await stream.until_tokens(n * AMID)


async def test_samples_share_a_stream(cluster: Cluster, node: FakeNode) -> None:
    await cluster.caller.deploy()
    stream = await cluster.caller.complete(n=4, request_id="r", max_tokens=TOKENS)
    assert_whole(stream, 4)
    assert stream.kinds[0] == "queued"
    assert stream.kinds.count("queued") == 1
    assert sorted(node.served()) == [f"r/choice/{choice}" for choice in range(4)]
    seeds = {one.request_id[-1]: one.sampling.seed for one in asked(node)}
    first = seeds["0"]
    assert [seeds[str(one)] for one in range(4)] == [
        (first + one) % (MAX_SEED + 1) for one in range(4)
    ]
    started = [event.started for event in stream.events if event.HasField("started")]
    assert {one.request_id for one in started} == set(node.served())
    assert [bool(one.prompt_token_ids) for one in started] == [True, False, False, False]
    await nothing_is_left(cluster, node)


async def test_one_sample_says_nothing_of_choices(cluster: Cluster, node: FakeNode) -> None:
    await cluster.caller.deploy()
    await cluster.caller.complete()
    plain = await cluster.caller.complete(request_id="plain")
    one = await cluster.caller.complete(request_id="plain", n=1)
    assert one.kinds == plain.kinds
    assert not any(event.choice for event in one.events)
    assert node.served()[-2:] == ["plain", "plain"]


async def test_those_that_wait_begin_with_the_prompt_that_the_first_was_told(
    cluster: Cluster, node: FakeNode
) -> None:
    await cluster.caller.deploy(max_concurrency=1)
    await cluster.caller.complete(n=3, request_id="r", max_tokens=TOKENS)
    assert [list(one.token_ids.ids) for one in asked(node)] == [[], [7, 8], [7, 8]]


async def test_all_are_taken_or_none(small: Cluster) -> None:
    node = await small.add_node("n1")
    await small.caller.deploy(max_concurrency=2)
    await small.caller.complete(request_id="warm")
    with pytest.raises(errors.QueueFull, match="3 more would, and 2 may"):
        await small.caller.complete(n=5)
    await nothing_is_left(small, node)
    assert node.served() == ["warm"]
    assert_whole(await small.caller.complete(n=4, max_tokens=TOKENS), 4)


async def test_the_last_of_them_has_to_meet_the_deadline(cluster: Cluster, node: FakeNode) -> None:
    await cluster.caller.deploy(max_concurrency=1)
    node.script.before_finish.shut()
    slow = await cluster.caller.generate().until("tokens")
    await assert_eventually(lambda: node.script.before_finish.waiting)
    await asyncio.sleep(0.5)  # what a request takes, as far as anybody will know
    node.script.before_finish.open()
    await slow.end()
    with pytest.raises(errors.DeadlineExceeded, match="would give the first token"):
        await cluster.caller.complete(n=64, timeout=5.0)
    await cluster.caller.complete(n=2)


async def test_one_that_fails_over_goes_on_with_its_tokens(
    cluster: Cluster, node: FakeNode
) -> None:
    await cluster.caller.deploy()
    node.script.tokens_before_gate = AMID
    node.script.amid_errors.append(errors.WorkerDied("killed"))
    stream = await cluster.caller.complete(n=3, max_tokens=TOKENS)
    assert_whole(stream, 3)
    moved = [event for event in stream.events if event.HasField("migrated")]
    assert moved
    assert {event.migrated.reason for event in moved} == {inference_pb.MIGRATION_REASON_FAILOVER}


async def test_a_lost_node_loses_no_token_of_any(cluster: Cluster, halfway: FakeNode) -> None:
    await cluster.caller.deploy()
    stream = await until_amid(cluster.caller.generate(n=4, max_tokens=TOKENS), 4)
    other = await cluster.add_node("n2")
    await cluster.lose_node("n1")
    await stream.end()
    assert_whole(stream, 4)
    moved = [event.choice for event in stream.events if event.HasField("migrated")]
    assert sorted(moved) == [0, 1, 2, 3]
    await nothing_is_left(cluster, other)


async def test_one_that_fails_ends_all(cluster: Cluster, halfway: FakeNode) -> None:
    await cluster.caller.deploy()
    stream = await until_amid(cluster.caller.generate(n=3, max_tokens=TOKENS), 3)
    halfway.script.amid_errors.append(errors.InvalidPrompt("no"))
    halfway.script.before_finish.shut()
    halfway.script.amid_tokens.open()
    with pytest.raises(errors.InvalidPrompt):
        await stream.end()
    await nothing_is_left(cluster, halfway)
    assert halfway.count("Cancel") >= 2, "hanging up alone would let them linger"
    halfway.script.before_finish.open()


@pytest.mark.parametrize("request_id", ["r", "r/choice/2"])
async def test_to_cancel_it_or_one_of_them_ends_all(
    cluster: Cluster, halfway: FakeNode, request_id: str
) -> None:
    await cluster.caller.deploy()
    lingering: dict[str, Any] = {"request_id": "r", "n": 3, "linger": {"seconds": 60}}
    stream = await until_amid(cluster.caller.generate(max_tokens=TOKENS, **lingering), 3)
    await cluster.caller.cancel(request_id)
    with pytest.raises(errors.Cancelled):
        await stream.end()
    await nothing_is_left(cluster, halfway)
    with pytest.raises(errors.RequestNotFound):
        await cluster.caller.cancel("r")


async def test_a_caller_that_leaves_stops_all(cluster: Cluster, halfway: FakeNode) -> None:
    await cluster.caller.deploy(max_concurrency=2)
    stream = await until_amid(cluster.caller.generate(n=5, max_tokens=TOKENS), 2)
    stream.call.cancel()
    await nothing_is_left(cluster, halfway)
    await assert_eventually(lambda: halfway.count("Cancel") == 2)


async def test_an_id_is_used_once_at_a_time(cluster: Cluster, halfway: FakeNode) -> None:
    await cluster.caller.deploy()
    several = await until_amid(cluster.caller.generate(n=2, request_id="s"), 2)
    single = await until_amid(cluster.caller.generate(request_id="one"), 1)
    for fields in ({"request_id": "s"}, {"request_id": "s", "n": 2}, {"request_id": "one", "n": 2}):
        with pytest.raises(errors.RequestIdInUse):
            await cluster.caller.complete(**fields)
    with pytest.raises(errors.RequestNotFound, match="s/choice/0, s/choice/1"):
        await cluster.caller.stream("Migrate", cluster_pb.MigrateRequest(request_id="s"))
    several.call.cancel()
    halfway.script.amid_tokens.open()
    await single.end()
    assert_whole(await cluster.caller.complete(n=2, request_id="s", max_tokens=TOKENS), 2)


async def test_a_deleted_deployment_ends_all(cluster: Cluster, halfway: FakeNode) -> None:
    await cluster.caller.deploy()
    stream = await until_amid(cluster.caller.generate(n=3, max_tokens=TOKENS), 3)
    await cluster.caller.delete("tiny")
    with pytest.raises(errors.SllmError):
        await stream.end()
    await assert_eventually(lambda: not halfway.running)


# --- read on ----------------------------------------------------------------------------------


def read_on(stream: Stream, n: int, **fields: Any) -> dict[str, Any]:
    """The request that goes on after what has come of a stream."""
    had = {choice: inference_pb.ChoiceContinuation(choice=choice) for choice in range(n)}
    for event in stream.events:
        one = had[event.choice]
        one.continuation.token_ids.extend(event.tokens.token_ids)
        if event.HasField("choice_finished"):
            one.finished.CopyFrom(event.choice_finished)
    return {
        "n": n,
        "choices": list(had.values()),
        "resume_from_sequence": len(stream.events),
        **fields,
    }


@pytest.mark.parametrize("finished", [0, 1, 3, 4])
async def test_it_is_read_on_wherever_it_broke_off(
    cluster: Cluster, node: FakeNode, finished: int
) -> None:
    await cluster.caller.deploy(max_concurrency=1)
    same: dict[str, Any] = {"request_id": "r", "max_tokens": TOKENS}
    stream = cluster.caller.generate(n=4, **same)
    while stream.kinds.count("choice_finished") < finished:
        stream.events.append(await stream.call.read())
    stream.call.cancel()
    await nothing_is_left(cluster, node)
    before = len(node.served())
    after = await cluster.caller.complete(**read_on(stream, 4, **same))
    assert after.kinds[0] != "queued"
    stream.events += after.events
    assert_whole(stream, 4)
    assert len(node.served()) - before == 4 - finished
    await nothing_is_left(cluster, node)


async def test_a_newer_reader_takes_the_place_of_the_one_before(
    cluster: Cluster, halfway: FakeNode
) -> None:
    await cluster.caller.deploy()
    same: dict[str, Any] = {"request_id": "r", "max_tokens": TOKENS}
    first = await until_amid(cluster.caller.generate(n=3, **same), 3)
    second = cluster.caller.generate(**read_on(first, 3, **same))
    with pytest.raises(errors.Cancelled):
        await first.end()
    halfway.script.amid_tokens.open()
    await second.end()
    first.events += second.events
    assert_whole(first, 3)


async def test_a_late_cancel_of_several_leaves_the_next_attempt_alone(
    cluster: Cluster, halfway: FakeNode
) -> None:
    await cluster.caller.deploy()
    stream = cluster.caller.generate(n=2, max_tokens=TOKENS, request_id="r", attempt="second")
    await until_amid(stream, 2)
    with pytest.raises(errors.RequestNotFound, match="another reads it"):
        await cluster.caller.cancel("r", "first")
    await cluster.caller.cancel("r", "second")
    with pytest.raises(errors.Cancelled):
        await stream.end()


async def test_what_nobody_reads_of_them_can_be_cancelled(cluster: Cluster, node: FakeNode) -> None:
    await cluster.caller.deploy(min_replicas=1)
    await cluster.wait_for_instances(1)
    (instance,) = node.instances.values()
    instance.unread_request_ids[:] = ["r/choice/1", "r/choice/3"]
    node.send_full()

    async def known() -> bool:
        return any(one.unread_request_ids for one in await cluster.caller.instances())

    await assert_eventually(known)
    await cluster.caller.cancel("r")
    assert node.count("Cancel") == 2
