"""Logprobs of the prompt, as callers get them."""

import pytest

import sllm
from sllm import errors
from tests.client.conftest import Collect
from tests.client.fake_control import FakeControl
from tests.client.messages import QUEUED, finished, generation, prompt, tokens

GONE = errors.ShuttingDown("the control plane is going down")
TOLD = [
    QUEUED,
    prompt(1, 0, 7, 8),
    prompt(2, 2, 6),
    tokens(3, 0, 10, text="Once"),
    finished(4),
]
TOP = (sllm.TopLogprob(9, -0.25),)


@pytest.mark.parametrize("at", [len(TOLD), 1, 2, 3, 4])
def test_they_are_of_every_token_of_the_prompt(
    control: FakeControl, collect: Collect, at: int
) -> None:
    if at < len(TOLD):
        control.reply("Generate", *TOLD[:at], GONE)
    control.reply("Generate", *TOLD[at % len(TOLD) :])
    events, result = collect("tiny", "Once", prompt_logprobs=1)

    assert result.prompt_logprobs == (
        sllm.PromptLogprob(7, None, ()),
        sllm.PromptLogprob(8, -0.5, TOP),
        sllm.PromptLogprob(6, -0.5, TOP),
    )
    told = [event for event in events if isinstance(event, sllm.PromptLogprobs)]
    assert [(event.sequence, event.first_index) for event in told] == [(1, 0), (2, 2)]
    assert control.requests["Generate"][0].prompt_logprobs == 1
    if at < len(TOLD):
        again = control.requests["Generate"][1]
        assert again.continuation.prompt_logprobs == [0, 2, 3, 3][at - 1]


def test_there_are_none_unless_they_are_asked_for(control: FakeControl, collect: Collect) -> None:
    control.reply("Generate", *generation())
    _, result = collect("tiny", "Once")
    assert result.prompt_logprobs is None
    assert not control.requests["Generate"][0].HasField("prompt_logprobs")


@pytest.mark.parametrize("messages", [[QUEUED, prompt(1, 1, 8)], [QUEUED, prompt(1, 0, 8)] * 2])
def test_a_part_that_is_missing_is_told(
    control: FakeControl, collect: Collect, messages: list[object]
) -> None:
    control.reply("Generate", *messages)  # type: ignore[arg-type]  # of one kind
    with pytest.raises(errors.Internal):
        collect("tiny", "Once", prompt_logprobs=1)
