"""Responses by OpenAI's own client."""

from typing import Any

import openai
import pytest
from serverlessllm.v1 import inference_service_pb2 as pb
from serverlessllm.v1 import types_pb2 as types

from sllm import errors
from tests.client.fake_control import FakeControl
from tests.client.messages import generation

ASKED: dict[str, Any] = {"model": "tiny", "input": "Hi"}


def _cut() -> list[pb.GenerateResponse]:
    *rest, end = generation()
    end.finished.reason = types.FINISH_REASON_LENGTH
    return [*rest, end]


def _thoughts_and_calls() -> list[pb.GenerateResponse]:
    queued, *_, end = generation()
    call = pb.ToolCallDelta(index=0, id="c-1", name="add", arguments='{"a"')
    more = pb.ToolCallDelta(index=0, arguments=": 1}")
    other = pb.ToolCallDelta(index=1, id="c-2", name="now", arguments="{}")
    parts: list[dict[str, Any]] = [
        {"reasoning": "I "},
        {"reasoning": "see"},
        {"text": "So ", "tool_calls": [call]},
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
    return [queued, *said, end]


async def _response(
    client: openai.AsyncOpenAI, streamed: bool, **options: Any
) -> openai.types.responses.Response:
    if not streamed:
        whole: Any = await client.responses.create(**{**ASKED, **options})
        return whole  # type: ignore[no-any-return]  # of what it is to be checked
    async with client.responses.stream(**{**ASKED, **options}) as stream:
        numbers = [event.sequence_number async for event in stream]
        found = await stream.get_final_response()
    assert numbers == list(range(len(numbers)))
    return found


STREAMED = pytest.mark.parametrize("streamed", [False, True])


@STREAMED
async def test_a_text(control: FakeControl, client: openai.AsyncOpenAI, streamed: bool) -> None:
    control.reply("Generate", *generation())
    response = await _response(client, streamed, instructions="Be short")
    assert (response.output_text, response.status) == ("Once upon", "completed")
    assert response.usage
    assert response.usage.total_tokens == 6
    assert response.model_extra
    assert response.model_extra["sllm"]["receipt"]["cold"] is True
    (request,) = control.requests["Generate"]
    assert [one.role for one in request.messages.messages] == ["system", "user"]


async def test_one_that_was_cut(control: FakeControl, client: openai.AsyncOpenAI) -> None:
    control.reply("Generate", *_cut())
    response = await _response(client, streamed=False)
    assert response.status == "incomplete"
    assert response.incomplete_details
    assert response.incomplete_details.reason == "max_output_tokens"
    control.reply("Generate", *_cut())
    events: Any = await client.responses.create(**ASKED, stream=True)
    kinds = [event.type async for event in events]
    assert (kinds[0], kinds[-1]) == ("response.created", "response.incomplete")


@STREAMED
async def test_thoughts_and_calls(
    control: FakeControl, client: openai.AsyncOpenAI, streamed: bool
) -> None:
    control.reply("Generate", *_thoughts_and_calls())
    tool: Any = {"type": "function", "name": "add", "parameters": {}, "strict": False}
    response = await _response(client, streamed, tools=[tool], tool_choice="auto")
    thought, said, *calls = response.output
    assert thought.type == "reasoning"
    assert thought.content
    assert thought.content[0].text == "I see"
    assert said.type == "message"
    called = [(one.name, one.arguments) for one in calls if one.type == "function_call"]
    assert called == [("add", '{"a": 1}'), ("now", "{}")]
    assert [one.call_id for one in calls if one.type == "function_call"] == ["c-1", "c-2"]


async def test_what_was_said_is_said_again(
    control: FakeControl, client: openai.AsyncOpenAI
) -> None:
    control.reply("Generate", *generation())
    said: Any = [
        {"role": "user", "content": [{"type": "input_text", "text": "Add"}]},
        {"type": "reasoning", "id": "r", "summary": []},
        {
            "type": "message",
            "id": "m",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": "So", "annotations": []}],
        },
        {"type": "function_call", "call_id": "c", "name": "add", "arguments": '{"a": 1}'},
        {"type": "function_call_output", "call_id": "c", "output": "2"},
    ]
    form: Any = {"format": {"type": "json_schema", "name": "a", "schema": {"type": "object"}}}
    choice: Any = {"type": "function", "name": "add"}
    tool: Any = {"type": "function", "name": "add", "parameters": {}, "strict": True}
    await client.responses.create(
        model="tiny", input=said, text=form, tools=[tool], tool_choice=choice, store=False
    )
    (request,) = control.requests["Generate"]
    assert [one.role for one in request.messages.messages] == ["user", "assistant", "tool"]
    assert request.messages.messages[1].content == "So"
    assert request.messages.messages[1].tool_calls[0].id == "c"
    assert request.structured_output.json_schema == '{"type": "object"}'
    assert request.messages.tool_choice.function == "add"


BAD: dict[str, dict[str, Any]] = {
    "kept": {"store": True},
    "what was kept": {"previous_response_id": "resp_1"},
    "a picture": {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
    "an item": {"input": [{"type": "item_reference", "id": "x"}]},
    "an item of no type": {"input": [{"type": ["message"], "role": "user", "content": "x"}]},
    "a field of an item": {"input": [{"role": "user", "content": "x", "name": "y"}]},
    "a field of a part": {
        "input": [{"role": "user", "content": [{"type": "input_text", "text": "", "foo": 1}]}]
    },
    "a tool of theirs": {"tools": [{"type": "web_search"}]},
    "a choice": {
        "tools": [{"type": "function", "name": "a", "parameters": {}}],
        "tool_choice": {"type": "mcp", "server_label": "x"},
    },
    "much to say": {"text": {"verbosity": "high"}},
}


@pytest.mark.parametrize("what", BAD)
async def test_what_is_not_served_is_named(client: openai.AsyncOpenAI, what: str) -> None:
    with pytest.raises(openai.BadRequestError):
        await client.responses.create(**{**ASKED, **BAD[what]})


async def test_what_fails_later_is_raised(control: FakeControl, client: openai.AsyncOpenAI) -> None:
    control.reply("Generate", *generation()[:4], errors.WorkerDied("it died"))
    events: Any = await client.responses.create(**ASKED, stream=True)
    with pytest.raises(openai.APIError) as caught:
        async for _ in events:
            pass
    assert caught.value.code == "WORKER_DIED"
