"""Messages by Anthropic's own client."""

from collections.abc import AsyncIterator
from typing import Any

import anthropic
import pytest
from serverlessllm.v1 import inference_service_pb2 as pb
from serverlessllm.v1 import model_service_pb2 as model_pb
from serverlessllm.v1 import types_pb2 as types

from sllm import errors
from tests.client.fake_control import FakeControl
from tests.client.messages import generation

HI: Any = [{"role": "user", "content": "Hi"}]
ASKED: dict[str, Any] = {"model": "tiny", "messages": HI, "max_tokens": 9}
TOOL: Any = {"name": "add", "description": "Adds", "input_schema": {"type": "object"}}


@pytest.fixture
async def claude(url: str) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(base_url=url, api_key="none", max_retries=0) as client:
        yield client


def _thoughts_and_calls() -> list[pb.GenerateResponse]:
    queued, *_, end = generation()
    call = pb.ToolCallDelta(index=0, id="c-1", name="add", arguments='{"a"')
    more = pb.ToolCallDelta(index=0, arguments=": 1}")
    other = pb.ToolCallDelta(index=1, id="c-2", name="now", arguments="{}")
    parts: list[dict[str, Any]] = [
        {"reasoning": "I "},
        {"reasoning": "see"},
        {"text": "So "},
        {"text": "be it", "tool_calls": [call]},
        {"tool_calls": [more, other]},
    ]
    said = [
        pb.GenerateResponse(
            sequence=1 + place, tokens=pb.Tokens(first_index=place, token_ids=[place], **part)
        )
        for place, part in enumerate(parts)
    ]
    end.sequence = 1 + len(said)
    end.finished.reason = types.FINISH_REASON_TOOL_CALLS
    end.finished.ClearField("stop")
    return [queued, *said, end]


def _kinds(message: anthropic.types.Message) -> list[Any]:
    found: list[Any] = []
    for block in message.content:
        match block.type:
            case "thinking":
                found.append(block.thinking)
            case "text":
                found.append(block.text)
            case "tool_use":
                found.append((block.name, block.input))
    return found


CALLED = ["I see", "So be it", ("add", {"a": 1}), ("now", {})]


async def test_a_whole_message(control: FakeControl, claude: anthropic.AsyncAnthropic) -> None:
    control.reply("Generate", *generation())
    message = await claude.messages.create(**ASKED)
    assert _kinds(message) == ["Once upon"]
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "END")
    assert (message.usage.input_tokens, message.usage.cache_read_input_tokens) == (2, 1)
    assert message.usage.output_tokens == 3
    assert message.model_extra
    assert message.model_extra["sllm"]["receipt"]["cold"] is True


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("one", [False, True])
async def test_thoughts_and_calls(
    control: FakeControl, claude: anthropic.AsyncAnthropic, streamed: bool, one: bool
) -> None:
    control.reply("Generate", *_thoughts_and_calls())
    choice: Any = {"type": "auto", "disable_parallel_tool_use": one}
    options: dict[str, Any] = {**ASKED, "tools": [TOOL], "tool_choice": choice}
    if streamed:
        async with claude.messages.stream(**options) as stream:
            message: Any = await stream.get_final_message()
    else:
        message = await claude.messages.create(**options)
    assert _kinds(message) == CALLED[: 3 if one else 4]
    assert message.stop_reason == "tool_use"


async def test_the_events_of_a_stream(
    control: FakeControl, claude: anthropic.AsyncAnthropic
) -> None:
    control.reply("Generate", *generation())
    events: Any = await claude.messages.create(**ASKED, stream=True)
    found = [event async for event in events]
    assert [event.type for event in found] == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert found[0].message.usage.input_tokens == 3
    assert found[-2].usage.output_tokens == 3


async def test_the_request_is_what_the_fields_say(
    control: FakeControl, claude: anthropic.AsyncAnthropic
) -> None:
    control.reply("Generate", *generation())
    said: Any = [
        {"role": "user", "content": "Add"},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": ""},
                {"type": "text", "text": "So"},
                {"type": "tool_use", "id": "c", "name": "add", "input": {"a": 1}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "c", "content": "2"},
                {"type": "text", "text": "Well?"},
            ],
        },
    ]
    form: Any = {"format": {"type": "json_schema", "schema": {"type": "object"}}, "effort": "low"}
    await claude.messages.create(
        model="tiny",
        system=[{"type": "text", "text": "Short", "cache_control": {"type": "ephemeral"}}],
        messages=said,
        max_tokens=5,
        stop_sequences=["x"],
        thinking={"type": "disabled"},
        tools=[TOOL],
        tool_choice={"type": "tool", "name": "add"},
        output_config=form,
        metadata={"user_id": "me"},
        extra_body={"top_k": 3, "temperature": 0.5},
    )
    (request,) = control.requests["Generate"]
    assert [one.role for one in request.messages.messages] == [
        *("system", "user", "assistant", "tool", "user")
    ]
    assert request.messages.messages[2].content == "So"
    assert request.messages.messages[2].tool_calls[0].arguments == '{"a": 1}'
    assert request.messages.messages[3].tool_call_id == "c"
    assert request.messages.tool_choice.function == "add"
    assert request.structured_output.json_schema == '{"type": "object"}'
    assert request.sampling.top_k == 3
    assert '"enable_thinking": false' in request.messages.template_arguments


async def test_tokens_are_counted(control: FakeControl, claude: anthropic.AsyncAnthropic) -> None:
    control.reply("CountTokens", model_pb.CountTokensResponse(tokens=7, context_tokens=9))
    counted = await claude.messages.count_tokens(
        model="tiny", messages=HI, tools=[TOOL], system="Short"
    )
    assert counted.input_tokens == 7
    (request,) = control.requests["CountTokens"]
    assert [one.role for one in request.messages.messages] == ["system", "user"]


async def test_errors_are_its_own(control: FakeControl, claude: anthropic.AsyncAnthropic) -> None:
    control.reply("Generate", errors.QueueFull("full", retry_after=3.0))
    with pytest.raises(anthropic.RateLimitError) as caught:
        await claude.messages.create(**ASKED)
    body: Any = caught.value.body
    assert body["type"] == "error"
    assert (body["error"]["type"], body["error"]["code"]) == ("rate_limit_error", "QUEUE_FULL")
    assert caught.value.response.headers["retry-after"] == "3"


async def test_what_fails_later_ends_the_stream(
    control: FakeControl, claude: anthropic.AsyncAnthropic
) -> None:
    control.reply("Generate", *generation()[:4], errors.WorkerDied("it died"))
    events: Any = await claude.messages.create(**ASKED, stream=True)
    with pytest.raises(anthropic.APIStatusError) as caught:
        async for _ in events:
            pass
    assert "WORKER_DIED" in str(caught.value.body)


BAD: dict[str, dict[str, Any]] = {
    "a picture": {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
    "no blocks": {"messages": [{"role": "user", "content": 5}]},
    "a role": {"messages": [{"role": "tool", "content": "x"}]},
    "a field": {"messages": [{"role": "user", "content": "x", "name": "y"}]},
    "a call without a name": {
        "messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "a"}]}]
    },
    "a tool of theirs": {"tools": [{"type": "web_search_20260209", "name": "web_search"}]},
    "a choice": {"tools": [TOOL], "tool_choice": {"type": "perhaps"}},
    "thoughts": {"thinking": {"type": "much"}},
    "a form": {"output_config": {"format": {"type": "json_schema"}}},
}


@pytest.mark.parametrize("what", BAD)
async def test_what_is_not_served_is_named(claude: anthropic.AsyncAnthropic, what: str) -> None:
    with pytest.raises(anthropic.BadRequestError) as caught:
        await claude.messages.create(**{**ASKED, **BAD[what]})
    body: Any = caught.value.body
    assert body["error"]["type"] == "invalid_request_error"
