"""What a stream yields, whether it is read with or without an event loop."""

import pytest
from serverlessllm.v1 import inference_service_pb2 as pb

import sllm
from sllm import errors
from tests.client.conftest import Call, Collect
from tests.client.fake_control import FakeControl
from tests.client.messages import (
    LOADING,
    MIGRATED,
    MOVED_CACHE,
    QUEUED,
    STARTED,
    finished,
    generation,
    tokens,
)


def test_events_are_typed_and_in_order(control: FakeControl, collect: Collect) -> None:
    control.reply("Generate", *generation())

    events, _ = collect("tiny", "Once", logprobs=1)

    logprob = sllm.TokenLogprob(-0.5, (sllm.TopLogprob(10, -0.5),))
    assert events[:4] == [
        sllm.Queued(sequence=0, position=2, estimated_wait=0.5),
        sllm.Loading(
            sequence=1,
            phase=sllm.LoadPhase.READ,
            from_tier=sllm.Tier.SSD,
            loaded_bytes=1,
            total_bytes=4,
            estimated_remaining=None,
        ),
        sllm.Started(2, instance_id="i-1", node_id="n-1", prompt_tokens=3, request_id="r-1"),
        sllm.Tokens(3, 0, token_ids=(10, 11), text="Once ", logprobs=(logprob, logprob)),
    ]
    assert isinstance(events[-1], sllm.Finished)


def test_a_migration_is_told_and_kept(control: FakeControl, collect: Collect) -> None:
    before, after = generation()[:4], [tokens(5, 2, 12, text="upon"), finished(6)]
    control.reply("Generate", *before, MIGRATED, *after)

    events, result = collect("tiny", "Once")

    reason = sllm.MigrationReason.FAILOVER
    moved = sllm.Migrated(4, "n-1", "n-2", "i-2", pause=0.5, reason=reason, cache=MOVED_CACHE)
    assert events[4] == moved
    assert result.migrations == (moved,)
    assert result.token_ids == (10, 11, 12)


def test_failover_is_asked_for_unless_it_is_not(control: FakeControl, collect: Collect) -> None:
    for failover in (True, False):
        control.reply("Generate", *generation())
        collect("tiny", "Once", failover=failover)
    assert [request.no_failover for request in control.requests["Generate"]] == [False, True]


def test_the_result_is_the_whole_generation(control: FakeControl, collect: Collect) -> None:
    control.reply("Generate", *generation())

    _, result = collect("tiny", "Once", request_id="mine")

    assert result == sllm.Result(
        request_id="mine",
        text="Once upon",
        token_ids=(10, 11, 12),
        logprobs=None,
        finish_reason=sllm.FinishReason.STOP,
        stop="END",
        usage=sllm.Usage(prompt_tokens=3, completion_tokens=3, cached_prompt_tokens=1),
        receipt=sllm.Receipt(
            cold=True,
            from_tier=sllm.Tier.SSD,
            phases=(
                sllm.Phase(sllm.PhaseKind.READ_SSD, 0.001, 0.5, size_bytes=4096),
                sllm.Phase(sllm.PhaseKind.PREFILL, 0.0, 0.5, size_bytes=None),
            ),
            time_to_first_token=1.25,
            estimated_start=0.5,
            actual_start=0.5,
            node_id="n-1",
            instance_id="i-1",
        ),
        choices=(sllm.Choice("Once upon", (10, 11, 12), None, sllm.FinishReason.STOP, stop="END"),),
    )


def test_logprobs_are_in_the_result_if_they_were_asked_for(
    control: FakeControl, collect: Collect
) -> None:
    control.reply("Generate", *generation())

    _, result = collect("tiny", "Once", logprobs=1)

    assert result.logprobs is not None
    assert len(result.logprobs) == len(result.token_ids)


def test_an_event_of_a_newer_server_is_passed_over(control: FakeControl, collect: Collect) -> None:
    unknown = pb.GenerateResponse(sequence=1)
    control.reply("Generate", QUEUED, unknown, STARTED, finished(3))

    events, _ = collect("tiny", "Once")

    assert [event.sequence for event in events] == [0, 2, 3]


BROKEN = {
    "a message is missing": ([QUEUED, STARTED, finished(3)], "message 2 came where 1 was due"),
    "tokens are missing": (
        [QUEUED, LOADING, STARTED, tokens(3, 1, 11, text="upon"), finished(4)],
        "lost tokens: 1 came where 0 was due",
    ),
    "the end is missing": ([QUEUED, LOADING, STARTED], "ended without its last message"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_stream_is_noticed(control: FakeControl, collect: Collect, what: str) -> None:
    messages, complaint = BROKEN[what]
    control.reply("Generate", *messages)

    with pytest.raises(errors.Internal, match=complaint):
        collect("tiny", "Once")


def test_a_failure_comes_after_what_was_said_before_it(control: FakeControl) -> None:
    control.reply("Generate", QUEUED, LOADING, errors.WorkerDied("the worker died"))

    with sllm.Client(control.address) as client:
        stream = client.generate("tiny", "Once")
        assert [next(stream).sequence, next(stream).sequence] == [0, 1]
        with pytest.raises(errors.WorkerDied, match="the worker died"):
            next(stream)
        with pytest.raises(errors.WorkerDied, match="the worker died"):
            stream.result()


def test_a_cancellation_from_elsewhere_is_typed(control: FakeControl, collect: Collect) -> None:
    control.reply("Generate", QUEUED, errors.Cancelled("cancelled by its id"))

    with pytest.raises(errors.Cancelled, match="cancelled by its id"):
        collect("tiny", "Once")


def test_complete_is_the_result_of_generate(control: FakeControl, call: Call) -> None:
    control.reply("Generate", *generation())

    result = call("complete", "tiny", "Once", max_tokens=3)

    assert result.text == "Once upon"
    assert control.requests["Generate"][0].max_tokens == 3
