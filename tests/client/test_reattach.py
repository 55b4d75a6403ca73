"""A stream that breaks off because the control plane is lost is read on once that is back."""

import asyncio

import pytest

import sllm
from sllm import errors
from sllm.client import stream as stream_module
from tests.client.conftest import Collect
from tests.client.fake_control import FakeControl
from tests.client.messages import QUEUED, STARTED, finished, generation, tokens
from tests.support import assert_eventually

GONE = errors.ShuttingDown("the control plane is going down")


def test_it_is_read_on_where_it_broke_off(control: FakeControl, collect: Collect) -> None:
    started = STARTED.__class__()
    started.CopyFrom(STARTED)
    started.sequence = 1
    started.started.prompt_token_ids.extend([7, 8])
    control.reply("Generate", QUEUED, started, tokens(2, 0, 10, 11, text="Once "), GONE)
    control.reply("Generate", GONE)
    control.reply("Generate", tokens(3, 2, 12, text="upon"), finished(4))

    events, result = collect("tiny", "Once", temperature=1.0)

    assert result.text == "Once upon"
    assert result.token_ids == (10, 11, 12)
    assert [event.sequence for event in events] == [0, 1, 2, 3, 4]
    first, _, last = control.requests["Generate"]
    assert not first.HasField("resume_from_sequence")
    assert last.resume_from_sequence == 3
    assert list(last.continuation.token_ids) == [10, 11]
    assert list(last.token_ids.ids) == [7, 8]
    assert last.sampling.seed == first.sampling.seed
    assert last.request_id == first.request_id


def test_one_that_is_under_way_can_be_read_from_its_beginning(
    control: FakeControl, collect: Collect
) -> None:
    for _ in range(2):
        control.reply("Generate", *generation())
        _, result = collect("tiny", "Once", request_id="mine", attach=True)
        assert result.text == "Once upon"
    first, again = control.requests["Generate"]
    assert first == again  # the id decides the seed
    assert first.HasField("resume_from_sequence")
    assert first.HasField("continuation")


async def test_one_that_is_cancelled_meanwhile_is_not_read_on(
    control: FakeControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "_RETRY_SECONDS", 0.5)
    control.reply("Generate", QUEUED, GONE)
    control.reply("Generate", *generation()[1:])
    async with sllm.AsyncClient(control.address) as client:
        stream = client.generate("tiny", "Once")
        await anext(stream)
        reading = asyncio.create_task(stream.receive())
        await assert_eventually(lambda: stream._call.current.done())
        await stream.cancel()
        with pytest.raises(errors.Cancelled):
            await reading
    assert len(control.requests["Generate"]) == 1


def test_it_is_not_waited_for_without_end(control: FakeControl, collect: Collect) -> None:
    control.reply("Generate", QUEUED, GONE)
    with pytest.raises(errors.ShuttingDown):
        collect("tiny", "Once", reattach=0.0)


def test_what_never_began_fails_at_once(control: FakeControl, collect: Collect) -> None:
    control.reply("Generate", GONE)
    with pytest.raises(errors.ShuttingDown):
        collect("tiny", "Once")


def test_other_errors_are_told(control: FakeControl, collect: Collect) -> None:
    control.reply("Generate", QUEUED, errors.WorkerDied("it died"))
    with pytest.raises(errors.WorkerDied):
        collect("tiny", "Once")
    control.reply("Generate", *generation())
    _, result = collect("tiny", "Once")
    assert isinstance(result, sllm.Result)
