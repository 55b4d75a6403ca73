"""How what a caller says becomes a request."""

import math
from typing import Any

import pytest
from serverlessllm.v1 import inference_service_pb2 as pb
from serverlessllm.v1 import types_pb2 as types

from sllm import errors
from tests.client.conftest import Call
from tests.client.fake_control import FakeControl
from tests.client.messages import generation


@pytest.fixture
def sent(control: FakeControl, call: Call) -> Any:
    """The request that `complete` makes of its arguments."""

    def send(*args: Any, **kwargs: Any) -> pb.GenerateRequest:
        control.reply("Generate", *generation())
        call("complete", *args, **kwargs)
        (request,) = control.requests["Generate"]
        assert isinstance(request, pb.GenerateRequest)
        return request

    return send


def test_what_is_not_said_stays_unset(sent: Any) -> None:
    request = sent("tiny", "Once", request_id="r")

    assert request.sampling.HasField("seed"), "what is drawn can be drawn again"
    request.sampling.ClearField("seed")
    assert request == pb.GenerateRequest(
        deployment="tiny", request_id="r", text="Once", sampling=types.SamplingParams()
    )


def test_zero_is_a_value(sent: Any) -> None:
    request = sent("tiny", "Once", temperature=0.0, top_k=0, min_p=0.0, seed=0, logprobs=0)

    assert request.sampling == types.SamplingParams(temperature=0.0, top_k=0, min_p=0.0, seed=0)
    assert request.HasField("logprobs")


def test_everything_that_is_said_arrives(sent: Any) -> None:
    request = sent(
        "tiny",
        prompt_token_ids=[1, 2],
        max_tokens=3,
        temperature=0.5,
        top_p=0.9,
        top_k=4,
        min_p=0.1,
        seed=2**64 - 1,
        repetition_penalty=1.1,
        presence_penalty=0.2,
        frequency_penalty=0.3,
        logit_bias={4: 1.5},
        min_tokens=2,
        bad_words=["x"],
        allowed_token_ids=[4, 5],
        stop=["a", "b"],
        stop_token_ids=[5],
        include_stop=True,
        skip_special_tokens=False,
        logprobs=6,
        ignore_eos=True,
        request_id="r",
    )

    assert request == pb.GenerateRequest(
        deployment="tiny",
        request_id="r",
        token_ids=types.TokenIds(ids=[1, 2]),
        sampling=types.SamplingParams(
            temperature=0.5,
            top_p=0.9,
            top_k=4,
            min_p=0.1,
            seed=2**64 - 1,
            repetition_penalty=1.1,
            presence_penalty=0.2,
            frequency_penalty=0.3,
            logit_bias={4: 1.5},
            min_tokens=2,
            bad_words=["x"],
            allowed_token_ids=[4, 5],
        ),
        stop=["a", "b"],
        stop_token_ids=[5],
        include_stop=True,
        skip_special_tokens=False,
        max_tokens=3,
        logprobs=6,
        ignore_eos=True,
    )


def test_all_of_a_conversation_arrives(sent: Any) -> None:
    call = {"id": "7", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
    request = sent(
        "tiny",
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "2", "tool_call_id": "7", "name": "add"},
        ],
        tools=[tool],
        template_arguments={"enable_thinking": False},
        add_generation_prompt=False,
        continue_final_message=True,
    )
    made = types.ToolCall(id="7", name="add", arguments='{"a": 1}')
    assert request.messages == types.ChatMessages(
        messages=[
            types.ChatMessage(role="user", parts=[types.ContentPart(text="Hi")]),
            types.ChatMessage(role="assistant", tool_calls=[made]),
            types.ChatMessage(role="tool", content="2", tool_call_id="7", name="add"),
        ],
        tools=[types.Tool(name="add", parameters='{"type": "object"}')],
        template_arguments='{"enable_thinking": false}',
        add_generation_prompt=False,
        continue_final_message=True,
    )


@pytest.mark.parametrize(
    "said",
    [
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
        {"messages": [{"role": "user", "content": None}]},
        {"messages": [{"role": "assistant", "tool_calls": [{"id": "1"}]}]},
        {"messages": [{"role": "user", "content": "a"}], "tools": [{"name": "f"}]},
        {"messages": [{"role": "user", "content": "a"}], "template_arguments": {"a": object()}},
        {"prompt": "a", "tools": [{"type": "function", "function": {"name": "f"}}]},
        {"prompt": "a", "continue_final_message": True},
    ],
)
def test_what_is_no_conversation_is_refused(sent: Any, said: Any) -> None:
    with pytest.raises(errors.InvalidPrompt):
        sent("tiny", **said)


@pytest.mark.parametrize(
    ("said", "sent_as"),
    [
        ({"json_schema": {"type": "null"}}, {"json_schema": '{"type": "null"}'}),
        ({"json_schema": True}, {"json_schema": "true"}),
        ({"json_schema": '{"enum": [1]}'}, {"json_schema": '{"enum": [1]}'}),
        ({"json_object": True}, {"json_object": True}),
        ({"regex": "a+"}, {"regex": "a+"}),
        ({"choice": ["a", "b"]}, {"choice": types.Choice(texts=["a", "b"])}),
        ({"choice": "a"}, {"choice": types.Choice(texts=["a"])}),
        ({"grammar": "start: /a/"}, {"grammar": "start: /a/"}),
    ],
)
def test_each_form_arrives(sent: Any, said: Any, sent_as: Any) -> None:
    request = sent("tiny", "Once", structured_output=said)
    assert request.structured_output == types.StructuredOutput(**sent_as)


@pytest.mark.parametrize(
    "said", [{}, {"regex": "a", "choice": ["b"]}, {"xml": "a"}, {"json_schema": {"a": object()}}]
)
def test_what_is_no_form_is_refused(sent: Any, said: Any) -> None:
    with pytest.raises(errors.InvalidStructuredOutput):
        sent("tiny", "Once", structured_output=said)


def test_a_conversation_arrives_in_order(sent: Any) -> None:
    said = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    request = sent("tiny", messages=said)

    assert [(one.role, one.content) for one in request.messages.messages] == [
        ("user", "Hi"),
        ("assistant", "Hello"),
    ]


def test_one_stop_string_need_not_be_a_list(sent: Any) -> None:
    assert list(sent("tiny", "Once", stop="END").stop) == ["END"]


@pytest.mark.parametrize(
    ("prompt", "form"),
    [
        ({"prompt": ""}, "text"),
        ({"prompt_token_ids": []}, "token_ids"),
        ({"messages": []}, "messages"),
    ],
)
def test_an_empty_prompt_is_for_the_server_to_judge(
    sent: Any, prompt: dict[str, Any], form: str
) -> None:
    assert sent("tiny", **prompt).WhichOneof("prompt") == form


def test_every_request_has_an_id_of_its_own(control: FakeControl, call: Call) -> None:
    for _ in range(2):
        control.reply("Generate", *generation())
        call("complete", "tiny", "Once")

    first, second = (request.request_id for request in control.requests["Generate"])
    assert first
    assert first != second


REFUSED: dict[str, tuple[dict[str, Any], type[errors.SllmError], str]] = {
    "no prompt": ({}, errors.InvalidPrompt, "exactly one"),
    "two prompts": (
        {"prompt": "a", "prompt_token_ids": [1]},
        errors.InvalidPrompt,
        "exactly one",
    ),
    "a message without a role": (
        {"messages": [{"content": "Hi"}]},
        errors.InvalidPrompt,
        "a message is",
    ),
    "a message that is none": ({"messages": ["Hi"]}, errors.InvalidPrompt, "a message is"),
    "a number that does not fit": (
        {"prompt": "a", "max_tokens": 2**40},
        errors.InvalidArgument,
        "out of its bounds",
    ),
    "a negative seed": ({"prompt": "a", "seed": -1}, errors.InvalidArgument, "out of its bounds"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_makes_no_sense_is_refused_before_it_is_sent(
    control: FakeControl, call: Call, what: str
) -> None:
    arguments, expected, complaint = REFUSED[what]

    with pytest.raises(expected, match=complaint):
        call("complete", "tiny", **arguments)
    assert not control.requests["Generate"]


@pytest.mark.parametrize("seconds", [math.inf, math.nan, 1e300])
def test_a_keep_alive_that_no_duration_can_hold(call: Call, seconds: float) -> None:
    with pytest.raises(errors.InvalidArgument):
        call("deploy", "tiny", "/models/tiny", keep_alive=seconds)
