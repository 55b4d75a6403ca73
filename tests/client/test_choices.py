"""Several samples of one prompt, as callers get them."""

import pytest

import sllm
from sllm import errors
from tests.client.conftest import Collect
from tests.client.fake_control import FakeControl
from tests.client.messages import QUEUED, about, finished, generation, samples, tokens

GONE = errors.ShuttingDown("the control plane is going down")


def test_events_say_which_they_are_about(control: FakeControl, collect: Collect) -> None:
    control.reply("Generate", *samples())
    events, result = collect("tiny", "Once", n=2)

    assert control.requests["Generate"][0].n == 2
    told = [
        (type(event).__name__, event.choice)
        for event in events
        if isinstance(event, sllm.Started | sllm.Tokens | sllm.ChoiceFinished)
    ]
    assert told == [
        ("Started", 1),
        ("Tokens", 1),
        ("Started", 0),
        ("Tokens", 0),
        ("ChoiceFinished", 1),
        ("Tokens", 0),
        ("ChoiceFinished", 0),
    ]
    first, second = result.choices
    assert (first.text, first.token_ids, first.stop) == ("Once upon", (10, 11, 12), "END")
    assert (second.text, second.token_ids) == ("Twice", (20, 21))
    assert (result.text, result.token_ids) == (first.text, first.token_ids)


def test_one_that_is_asked_for_is_no_choice(control: FakeControl, collect: Collect) -> None:
    for n in (None, 1):
        control.reply("Generate", *generation())
        events, result = collect("tiny", "Once", n=n)
        assert not any(isinstance(event, sllm.ChoiceFinished) for event in events)
        assert [one.text for one in result.choices] == [result.text] == ["Once upon"]
    assert [one.HasField("n") for one in control.requests["Generate"]] == [False, True]


@pytest.mark.parametrize("at", range(1, len(samples())))
def test_all_are_read_on_wherever_the_stream_breaks_off(
    control: FakeControl, collect: Collect, at: int
) -> None:
    control.reply("Generate", *samples()[:at], GONE)
    control.reply("Generate", *samples()[at:])
    events, result = collect("tiny", "Once", n=2, logprobs=1)

    assert [event.sequence for event in events] == list(range(len(samples())))
    assert [one.text for one in result.choices] == ["Once upon", "Twice"]
    again = control.requests["Generate"][1]
    assert (again.resume_from_sequence, again.n) == (at, 2)
    assert not again.HasField("continuation")
    had = {one.choice: one for one in again.choices}
    before = samples()[:at]
    for choice in range(2):
        mine = [message for message in before if message.choice == choice]
        told = [token for message in mine for token in message.tokens.token_ids]
        assert list(had[choice].continuation.token_ids) == told
        ended = any(message.HasField("choice_finished") for message in mine)
        assert had[choice].HasField("finished") == ended


BROKEN = {
    "tokens of one are missing": [QUEUED, about(1, tokens(1, 1, 21, text="wice"))],
    "it is of no sample": [QUEUED, about(2, tokens(1, 0, 21, text="wice"))],
    "one has no end": [QUEUED, about(1, finished(1)), finished(2)],
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_broken_is_told(control: FakeControl, collect: Collect, what: str) -> None:
    control.reply("Generate", *BROKEN[what])
    with pytest.raises(errors.Internal):
        collect("tiny", "Once", n=2)


def test_how_many_is_for_the_control_plane_to_judge(control: FakeControl, collect: Collect) -> None:
    control.reply("Generate", errors.InvalidArgument("n must be from 1 to 128"))
    with pytest.raises(errors.InvalidArgument, match="128"):
        collect("tiny", "Once", n=2**31 - 1)
