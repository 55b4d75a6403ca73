"""Answers taken apart into what they say, think and call, through the whole system."""

import json
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

import sllm
from sllm import errors
from tests.e2e.cluster import Cluster
from tests.e2e.engines import ENGINES
from tests.e2e.generations import moved, two_instances

pytestmark = pytest.mark.skipif("vllm" not in ENGINES, reason="parsers are vLLM's")

TEMPLATE = (
    "{% for t in tools or [] %}{{ t.function.name }}{% endfor %}"
    "{% for m in messages %}[{{ m.role }}: {{ m.content }}]{% endfor %}[assistant: "
)
ADD: sllm.Tool = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", "yy"]}},
            "required": ["a", "b"],
            "additionalProperties": False,
            "x-guidance": {"whitespace_flexible": False},
        },
    },
}
NOW: sllm.Tool = {"type": "function", "function": {"name": "now", "parameters": {}}}
HI: list[sllm.ChatMessage] = [{"role": "user", "content": "Hi"}]
CHAT: dict[str, Any] = {"messages": HI, "tools": [ADD, NOW], "temperature": 0.0, "max_tokens": 400}

CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 12, "b": "yy"}}\n</tool_call>'
OTHER = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
BROKEN = '<tool_call>\n{"name": "add", "argu'
ADDED = ("add", {"a": 12, "b": "yy"})
ANSWERS: dict[str, tuple[str, str, str, list[tuple[str, Any]]]] = {
    # what the model writes: what it says, thinks and calls
    "only text": ("<think></think>So it is", "So it is", "", []),
    "a thought": ("<think>I see</think>So it is", "So it is", "I see", []),
    "a call": (f"<think>I see</think>{CALL}", "", "I see", [ADDED]),
    "two calls": (f"<think>a</think>So {CALL}\n{OTHER}", "So ", "a", [ADDED, ("now", {})]),
}


def written(text: str) -> dict[str, Any]:
    """Has the model write just that."""
    return {"structured_output": {"choice": [text]}}


@pytest.fixture(scope="module")
def model(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = shutil.copytree(models / "tiny-llama", tmp_path_factory.mktemp("calls") / "model")
    (model / "chat_template.jinja").write_text(TEMPLATE)
    return model


@pytest.fixture(scope="module")
def pair(cluster: Cluster, model: Path) -> Iterator[Cluster]:
    parsers = {"tool_parser": "hermes", "reasoning_parser": "qwen3"}
    with two_instances(cluster, "calls", model, "vllm", **parsers):
        yield cluster


@pytest.fixture
async def client(pair: Cluster) -> AsyncIterator[sllm.AsyncClient]:
    async with sllm.AsyncClient(pair.control.address) as client:
        yield client


def called(result: sllm.Result) -> list[tuple[str, Any]]:
    functions = [call["function"] for call in result.tool_calls]
    return [(one["name"], json.loads(str(one["arguments"]))) for one in functions]


@pytest.mark.parametrize("name", ANSWERS)
async def test_an_answer_is_taken_apart(client: sllm.AsyncClient, name: str) -> None:
    text, said, thought, calls = ANSWERS[name]
    result = await client.complete("calls", **CHAT, **written(text))
    assert (result.text.strip(), result.reasoning) == (said.strip(), thought)
    assert called(result) == calls
    assert result.finish_reason == ("TOOL_CALLS" if calls else "STOP")
    ids = [call["id"] for call in result.tool_calls]
    assert len({*ids, ""}) == len(calls) + 1


async def test_what_no_parser_understands_is_lost_by_nobody(client: sllm.AsyncClient) -> None:
    result = await client.complete("calls", **CHAT, **written(f"<think></think>{BROKEN}"))
    assert result.finish_reason in ("STOP", "TOOL_CALLS")
    assert result.token_ids


async def test_a_prompt_that_is_no_conversation_is_answered_by_text(
    client: sllm.AsyncClient,
) -> None:
    text = ANSWERS["a call"][0]
    result = await client.complete("calls", "Hi", temperature=0.0, **written(text))
    assert (result.text, result.reasoning, result.tool_calls) == (text, "", ())


async def test_no_tools_are_called_without_any(client: sllm.AsyncClient) -> None:
    alone = {**CHAT, "tools": None}
    result = await client.complete("calls", **alone, **written(f"<think>x</think>{CALL}"))
    assert (result.text, result.reasoning, result.tool_calls) == (CALL, "x", ())


@pytest.mark.parametrize("at", [1, 20, 45, 60])
async def test_it_is_the_same_wherever_it_goes_on(client: sllm.AsyncClient, at: int) -> None:
    text = f"<think>{'I see. ' * 6}</think>So {CALL}\n{OTHER}"
    options = {**CHAT, **written(text), "request_id": f"moving-{at}"}
    expected = await client.complete("calls", **options)
    stream, migration = await moved(client, lambda: client.generate("calls", **options), at)
    result = await stream.result()
    assert [one.outcome for one in migration.requests] == ["MOVED"]
    for field in ("text", "reasoning", "tool_calls", "token_ids", "finish_reason"):
        assert getattr(result, field) == getattr(expected, field), field
    assert called(result) == [ADDED, ("now", {})]


async def test_a_call_can_be_required(client: sllm.AsyncClient) -> None:
    for seed in range(3):
        options = {**CHAT, "temperature": 1.0, "seed": seed, "tool_choice": "required"}
        result = await client.complete("calls", **{**options, "tools": [ADD]})
        if result.finish_reason == "LENGTH":
            continue  # a model of random weights calls and calls
        assert {name for name, _ in called(result)} == {"add"}
        assert all(arguments.keys() == {"a", "b"} for _, arguments in called(result))
        assert (result.text, result.finish_reason) == ("", "TOOL_CALLS")


async def test_a_tool_can_be_named(client: sllm.AsyncClient) -> None:
    named: sllm.NamedTool = {"type": "function", "function": {"name": "add"}}
    result = await client.complete("calls", **CHAT, tool_choice=named)
    ((name, arguments),) = called(result)
    assert (name, arguments["b"]) in {("add", "x"), ("add", "yy")}
    assert (result.text, result.reasoning) == ("", "")


async def test_the_model_is_not_told_of_tools_that_it_may_not_call(
    client: sllm.AsyncClient,
) -> None:
    told = await client.complete("calls", **{**CHAT, "max_tokens": 1})
    untold = await client.complete("calls", **{**CHAT, "max_tokens": 1, "tool_choice": "none"})
    without = await client.complete("calls", **{**CHAT, "max_tokens": 1, "tools": None})
    assert untold.usage.prompt_tokens == without.usage.prompt_tokens < told.usage.prompt_tokens


BAD: dict[str, dict[str, Any]] = {
    "no such tool": {"tool_choice": {"type": "function", "function": {"name": "mul"}}},
    "no tools": {"tools": None, "tool_choice": "required"},
    "no such choice": {"tool_choice": "perhaps"},
    "another form": {"tool_choice": "required", "structured_output": {"regex": "a"}},
}


@pytest.mark.parametrize("what", BAD)
async def test_bad_choices_are_refused(client: sllm.AsyncClient, what: str) -> None:
    with pytest.raises(errors.InvalidPrompt):
        await client.complete("calls", **{**CHAT, **BAD[what]})


def test_without_a_parser_calls_are_text(cluster: Cluster, model: Path) -> None:
    client, text = cluster.client, ANSWERS["a call"][0]
    client.deploy("plain", f"file://{model}", engine="vllm", keep_alive=0.0)
    try:
        result = client.complete("plain", **CHAT, **written(text))
        assert (result.text, result.tool_calls) == (text, ())
        with pytest.raises(errors.InvalidPrompt, match="tool_parser"):
            client.complete("plain", **CHAT, tool_choice="required")
    finally:
        client.delete("plain")


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"tool_parser": "nobody"}, errors.UnsupportedModel, "it has .*hermes"),
        ({"reasoning_parser": "nobody"}, errors.UnsupportedModel, "it has .*deepseek_r1"),
        ({"tool_parser": "llama3_json"}, errors.UnsupportedModel, r"python_tag"),
        (
            {"tool_parser": "hermes", "engine": "transformers"},
            errors.InvalidArgument,
            "tool_parser",
        ),
        ({"tool_parser": "x" * 300}, errors.InvalidArgument, "256"),
    ],
)
def test_parsers_that_cannot_be_had_are_refused(
    cluster: Cluster, model: Path, options: dict[str, str], error: type, said: str
) -> None:
    with pytest.raises(error, match=said):
        cluster.client.deploy("bad", f"file://{model}", **{"engine": "vllm", **options})  # type: ignore[arg-type]  # by name
    with pytest.raises(errors.DeploymentNotFound):
        cluster.client.deployment("bad")
