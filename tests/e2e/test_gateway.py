"""HTTP through the whole system, by the official clients."""

import json
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import anthropic
import httpx2
import openai
import pytest

import sllm
from tests.e2e.cluster import Cluster, Part
from tests.support import assert_eventually

HI: Any = [{"role": "user", "content": "Hi"}]
ASKED: dict[str, Any] = {"model": "http", "messages": HI}
PICK: dict[str, Any] = {
    "type": "object",
    "properties": {"b": {"enum": ["x", "yy"]}},
    "required": ["b"],
    "additionalProperties": False,
    "x-guidance": {"whitespace_flexible": False},
}


@pytest.fixture
async def client(gateway: Part) -> AsyncIterator[openai.AsyncOpenAI]:
    url = f"http://{gateway.address}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield client


async def test_both_doors_say_the_same(chat_model: Cluster, client: openai.AsyncOpenAI) -> None:
    options: dict[str, Any] = {"max_tokens": 40, "seed": 3}
    expected = chat_model.client.complete("http", messages=HI, **options)
    whole = await client.chat.completions.create(**ASKED, **options)
    assert whole.choices[0].message.content == expected.text
    assert whole.usage
    assert whole.usage.completion_tokens == 40
    stream = await client.chat.completions.create(**ASKED, **options, stream=True)
    parts = [chunk.choices[0].delta.content async for chunk in stream]
    assert "".join(part or "" for part in parts) == expected.text


async def test_logprobs_have_the_texts_of_tokens(client: openai.AsyncOpenAI) -> None:
    options: dict[str, Any] = {"max_tokens": 20, "temperature": 0, "top_logprobs": 2}
    answer = await client.chat.completions.create(**ASKED, **options, logprobs=True)
    told = answer.choices[0].logprobs
    assert told
    assert told.content
    assert "".join(one.token for one in told.content) == answer.choices[0].message.content
    assert all(one.top_logprobs[0].token == one.token for one in told.content)
    completed = await client.completions.create(
        model="http", prompt="Hi", max_tokens=20, temperature=0, logprobs=2
    )
    logprobs = completed.choices[0].logprobs
    assert logprobs
    assert "".join(logprobs.tokens or ()) == completed.choices[0].text


async def test_a_tool_is_called(gateway: Part, client: openai.AsyncOpenAI) -> None:
    tool: Any = {"type": "function", "function": {"name": "pick", "parameters": PICK}}
    choice: Any = {"type": "function", "function": {"name": "pick"}}
    options: dict[str, Any] = {"tools": [tool], "tool_choice": choice}
    answer = await client.chat.completions.create(**ASKED, **options)
    (call,) = answer.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert json.loads(call.function.arguments)["b"] in ("x", "yy")
    async with anthropic.AsyncAnthropic(
        base_url=f"http://{gateway.address}", api_key="none"
    ) as claude:
        theirs: Any = {"name": "pick", "input_schema": PICK}
        async with claude.messages.stream(
            **ASKED, max_tokens=100, tools=[theirs], tool_choice={"type": "tool", "name": "pick"}
        ) as stream:
            message = await stream.get_final_message()
        (block,) = message.content
        assert block.type == "tool_use"
        assert block.input["b"] in ("x", "yy")
        counted = await claude.messages.count_tokens(**ASKED, tools=[theirs])
        assert counted.input_tokens == message.usage.input_tokens + (
            message.usage.cache_read_input_tokens or 0
        )


async def test_a_form_holds(client: openai.AsyncOpenAI) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "pick", "schema": PICK}}
    answer = await client.chat.completions.create(**ASKED, response_format=form)
    assert json.loads(answer.choices[0].message.content or "")["b"] in ("x", "yy")


def _running(cluster: Cluster) -> int:
    found = [one for one in cluster.client.instances() if one.deployment == "http"]
    return sum(one.running_requests for one in found)


@pytest.mark.parametrize("name", [{}, {"x-request-id": "leaving"}])
async def test_a_caller_that_leaves_ends_its_generation(
    chat_model: Cluster, client: openai.AsyncOpenAI, name: dict[str, str]
) -> None:
    extra: dict[str, Any] = {"extra_body": {"ignore_eos": True}, "extra_headers": name}
    stream = await client.chat.completions.create(**ASKED, **extra, max_tokens=450, stream=True)
    await anext(aiter(stream))
    await stream.close()
    await assert_eventually(lambda: not _running(chat_model))


async def test_who_named_its_request_comes_back_to_it(
    chat_model: Cluster, gateway: Part, client: openai.AsyncOpenAI
) -> None:
    """The gateway is killed in the middle; what another one says begins at the beginning."""
    options: dict[str, Any] = {
        "max_tokens": 300,
        "stream": True,
        "extra_body": {"ignore_eos": True},
        "extra_headers": {"x-request-id": "mine"},
    }
    stream = await client.chat.completions.create(**ASKED, **options)
    said = ""
    with suppress(openai.APIError, httpx2.HTTPError):
        async for chunk in stream:
            said += chunk.choices[0].delta.content or ""
            if len(said) > 20 and gateway.is_running():
                gateway.kill()
    assert not gateway.is_running()
    gateway.restart()
    again = await client.chat.completions.create(**ASKED, **options)
    text, own = "", None
    async for chunk in again:
        text += chunk.choices[0].delta.content or ""
        own = (chunk.model_extra or {}).get("sllm") or own
    assert text.startswith(said)
    assert own
    expected = await _alone(chat_model, own["request_id"])
    assert text == expected.text


async def _alone(cluster: Cluster, request_id: str) -> sllm.Result:
    """What the same request says whose seed its id decides."""
    async with sllm.AsyncClient(cluster.control.address) as client:
        return await client.complete(
            "http", messages=HI, max_tokens=300, ignore_eos=True, request_id=request_id, attach=True
        )


async def test_a_cancel_that_comes_late_ends_no_newer_attempt(chat_model: Cluster) -> None:
    """What a gateway sends whose caller is gone, and has come back to another one meanwhile."""
    options: dict[str, Any] = {"max_tokens": 300, "ignore_eos": True, "linger": 30.0}
    named: dict[str, Any] = {"messages": HI, "request_id": "raced", "attach": True, **options}
    async with sllm.AsyncClient(chat_model.control.address) as client:
        first = client.generate("http", **named, attempt="first")
        await anext(event async for event in first if isinstance(event, sllm.Tokens))
        second = client.generate("http", **named, attempt="second")
        await anext(event async for event in second if isinstance(event, sllm.Tokens))
        with pytest.raises(sllm.errors.Cancelled):
            await first.result()
        with pytest.raises(sllm.errors.RequestNotFound):
            await client.cancel("raced", attempt="first")
        assert (await second.result()).usage.completion_tokens == 300
