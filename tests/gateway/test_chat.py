"""Conversations and completions by OpenAI's own client."""

from typing import Any

import httpx2
import openai
import pytest
from serverlessllm.v1 import inference_service_pb2 as pb
from serverlessllm.v1 import types_pb2 as types

from sllm import errors
from tests.client.fake_control import FakeControl
from tests.client.messages import generation, samples

HI: list[Any] = [{"role": "user", "content": "Hi"}]
CHAT: dict[str, Any] = {"model": "tiny", "messages": HI}


async def test_a_whole_answer(control: FakeControl, client: openai.AsyncOpenAI) -> None:
    control.reply("Generate", *generation())
    answer = await client.chat.completions.create(**CHAT)
    (choice,) = answer.choices
    assert (choice.message.content, choice.finish_reason) == ("Once upon", "stop")
    assert answer.usage
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (3, 6)
    assert answer.usage.prompt_tokens_details
    assert answer.usage.prompt_tokens_details.cached_tokens == 1
    assert answer.model_extra
    assert answer.model_extra["sllm"]["receipt"]["cold"] is True
    assert answer._request_id
    assert answer.id.endswith(answer._request_id)


async def test_time_is_told_in_a_header(control: FakeControl, client: openai.AsyncOpenAI) -> None:
    control.reply("Generate", *generation())
    raw = await client.chat.completions.with_raw_response.create(**CHAT)
    told = raw.headers["server-timing"]
    assert told == "read_ssd;dur=500.0, prefill;dur=500.0, first_token;dur=1250.0"


async def test_a_stream(control: FakeControl, client: openai.AsyncOpenAI) -> None:
    control.reply("Generate", *generation())
    stream = await client.chat.completions.create(**CHAT, stream=True)
    chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Once upon"
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None, None, None, "stop"]
    assert all(chunk.usage is None for chunk in chunks)
    assert chunks[-1].model_extra
    assert chunks[-1].model_extra["sllm"]["receipt"]["time_to_first_token"] == 1.25
    assert len({chunk.id for chunk in chunks}) == 1


async def test_a_stream_that_tells_usage(control: FakeControl, client: openai.AsyncOpenAI) -> None:
    control.reply("Generate", *generation())
    options: Any = {"include_usage": True}
    stream = await client.chat.completions.create(**CHAT, stream=True, stream_options=options)
    *chunks, last = [chunk async for chunk in stream]
    assert all(chunk.usage is None for chunk in chunks)
    assert last.choices == []
    assert last.usage
    assert last.usage.completion_tokens == 3
    assert last.model_extra
    assert last.model_extra["sllm"]["receipt"]["cold"] is True


async def test_several_choices(control: FakeControl, client: openai.AsyncOpenAI) -> None:
    control.reply("Generate", *samples())
    control.reply("Generate", *samples())
    answer = await client.chat.completions.create(**CHAT, n=2)
    assert [one.message.content for one in answer.choices] == ["Once upon", "Twice"]
    stream = await client.chat.completions.create(**CHAT, n=2, stream=True)
    texts = {0: "", 1: ""}
    ends = []
    async for chunk in stream:
        (choice,) = chunk.choices
        texts[choice.index] += choice.delta.content or ""
        ends += [choice.index] if choice.finish_reason else []
    assert texts == {0: "Once upon", 1: "Twice"}
    assert ends == [1, 0]


def _said(sequence: int, **parts: Any) -> pb.GenerateResponse:
    return pb.GenerateResponse(sequence=sequence, tokens=pb.Tokens(**parts))


def _thoughts_and_calls() -> list[pb.GenerateResponse]:
    queued, *_, end = generation()
    call = pb.ToolCallDelta(index=0, id="c-1", name="add", arguments='{"a"')
    more = pb.ToolCallDelta(index=0, arguments=": 1}")
    other = pb.ToolCallDelta(index=1, id="c-2", name="now", arguments="{}")
    said = [
        _said(1, token_ids=[1], reasoning="I see"),
        _said(2, first_index=1, token_ids=[2], tool_calls=[call]),
        _said(3, first_index=2, token_ids=[3], tool_calls=[more, other]),
    ]
    end.sequence = 4
    end.finished.reason = types.FINISH_REASON_TOOL_CALLS
    return [queued, *said, end]


async def test_thoughts_and_calls(control: FakeControl, client: openai.AsyncOpenAI) -> None:
    control.reply("Generate", *_thoughts_and_calls())
    answer = await client.chat.completions.create(**CHAT)
    message = answer.choices[0].message
    assert message.content is None
    assert message.model_extra
    assert message.model_extra["reasoning_content"] == message.model_extra["reasoning"] == "I see"
    functions = [call.function for call in message.tool_calls or () if call.type == "function"]
    called = [(one.name, one.arguments) for one in functions]
    assert called == [("add", '{"a": 1}'), ("now", "{}")]
    assert answer.choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize("parallel", [True, False])
async def test_calls_as_they_come(
    control: FakeControl, client: openai.AsyncOpenAI, parallel: bool
) -> None:
    control.reply("Generate", *_thoughts_and_calls())
    stream = await client.chat.completions.create(**CHAT, stream=True, parallel_tool_calls=parallel)
    thoughts, calls = "", {0: "", 1: ""}
    async for chunk in stream:
        delta = chunk.choices[0].delta
        thoughts += (delta.model_extra or {}).get("reasoning_content", "")
        for call in delta.tool_calls or ():
            assert call.function
            calls[call.index] += call.function.arguments or ""
    assert thoughts == "I see"
    assert calls == {0: '{"a": 1}', 1: "{}" if parallel else ""}


async def test_the_request_is_what_the_fields_say(
    control: FakeControl, client: openai.AsyncOpenAI
) -> None:
    control.reply("Generate", *generation())
    tool: Any = {"type": "function", "function": {"name": "add", "parameters": {}, "strict": True}}
    form: Any = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}
    await client.chat.completions.create(
        model="tiny",
        messages=[{"role": "developer", "content": [{"type": "text", "text": "Short"}]}, *HI],
        max_completion_tokens=7,
        temperature=0.5,
        top_p=0.9,
        frequency_penalty=0.1,
        presence_penalty=0.2,
        seed=5,
        stop=["a", "b"],
        logit_bias={"3": 1},
        tools=[tool],
        tool_choice="auto",
        response_format=form,
        reasoning_effort="low",
        metadata={"a": "b"},
        user="me",
        store=False,
        extra_body={"top_k": 3, "min_p": 0.1, "template_arguments": {"x": 1}, "failover": False},
        extra_headers={"x-sllm-priority": "-3", "x-sllm-keep-alive": "2.5"},
    )
    (request,) = control.requests["Generate"]
    assert [one.role for one in request.messages.messages] == ["system", "user"]
    assert request.max_tokens == 7
    assert list(request.stop) == ["a", "b"]
    assert request.sampling.seed == 5
    assert request.sampling.top_k == 3
    assert request.sampling.logit_bias == {3: 1.0}
    assert request.messages.tools[0].name == "add"
    assert request.structured_output.json_schema == '{"type": "object"}'
    assert '"reasoning_effort": "low"' in request.messages.template_arguments
    assert '"x": 1' in request.messages.template_arguments
    assert (request.priority, request.keep_alive.ToTimedelta().total_seconds()) == (-3, 2.5)
    assert request.no_failover


async def test_a_completion(control: FakeControl, client: openai.AsyncOpenAI) -> None:
    control.reply("Generate", *generation())
    answer = await client.completions.create(model="tiny", prompt="Once", max_tokens=3)
    assert answer.choices[0].text == "Once upon"
    assert control.requests["Generate"][0].text == "Once"


PROMPTS: dict[str, tuple[Any, list[Any]]] = {
    "a text": ("a", ["a"]),
    "texts": (["a", "b"], ["a", "b"]),
    "tokens": ([1, 2], [[1, 2]]),
    "tokens of several": ([[1, 2], [3]], [[1, 2], [3]]),
}


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("form", PROMPTS)
async def test_prompts_of_every_form(
    control: FakeControl, client: openai.AsyncOpenAI, form: str, stream: bool
) -> None:
    prompt, meant = PROMPTS[form]
    for _ in meant:
        control.reply("Generate", *generation())
    texts: dict[int, str] = {}
    answer: Any = await client.completions.create(model="tiny", prompt=prompt, stream=stream)
    if stream:
        async for chunk in answer:
            for one in chunk.choices:
                texts[one.index] = texts.get(one.index, "") + one.text
    else:
        texts = {one.index: one.text for one in answer.choices}
    assert texts == dict.fromkeys(range(len(meant)), "Once upon")
    sent = [one.text or list(one.token_ids.ids) for one in control.requests["Generate"]]
    assert sorted(map(str, sent)) == sorted(map(str, meant))


async def test_one_prompt_that_is_refused_ends_all(
    control: FakeControl, client: openai.AsyncOpenAI
) -> None:
    control.reply("Generate", *generation()[:3])
    control.reply("Generate", errors.ContextExceeded("too long"))
    with pytest.raises(openai.BadRequestError) as caught:
        await client.completions.create(model="tiny", prompt=["a", "b"])
    assert caught.value.code == "CONTEXT_EXCEEDED"


async def test_models(control: FakeControl, http: httpx2.AsyncClient) -> None:
    from serverlessllm.v1 import deployment_service_pb2 as deployment_pb

    from tests.client.messages import deployment

    listed = deployment_pb.ListDeploymentsResponse(deployments=[deployment()])
    control.reply("ListDeployments", listed)
    found = (await http.get("/v1/models")).json()
    assert [one["id"] for one in found["data"]] == ["tiny"]
    assert found["data"][0]["max_model_len"] == 512
    control.reply("GetDeployment", deployment_pb.GetDeploymentResponse(deployment=deployment()))
    assert (await http.get("/v1/models/tiny")).json()["object"] == "model"
