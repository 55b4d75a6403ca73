"""Answers taken apart into what they say, think and call, through the whole system."""

import dataclasses
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
from tests.e2e.generations import moved, steps, two_instances

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
SHORT: list[sllm.Tool] = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {
                "properties": {"b": {"enum": ["x", "yy"]}},
                "required": ["b"],
                "additionalProperties": False,
            },
        },
    }
    for name in ("pick", "put")
]
"""Whose arguments come to an end, whatever the model likes."""
NOW: sllm.Tool = {"type": "function", "function": {"name": "now", "parameters": {}}}
HI: list[sllm.ChatMessage] = [{"role": "user", "content": "Hi"}]
CHAT: dict[str, Any] = {"messages": HI, "tools": [ADD, NOW], "temperature": 0.0, "max_tokens": 400}

CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 12, "b": "yy"}}\n</tool_call>'
OTHER = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
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
    if "vllm" not in ENGINES:
        pytest.skip("parsers are vLLM's")
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


@pytest.mark.parametrize("text", ["if a <", "<tool_call>hello</tool_call>", "So <tool_call>{}"])
async def test_what_turns_out_to_be_no_call_is_text(client: sllm.AsyncClient, text: str) -> None:
    result = await client.complete("calls", **CHAT, **written(f"<think></think>{text}"))
    assert (result.text.strip(), result.tool_calls) == (text, ())
    assert result.finish_reason == "STOP"


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


@pytest.mark.parametrize("at", steps(1, 20, 45, 60))
async def test_it_moves_at_any_step(client: sllm.AsyncClient, at: int) -> None:
    text = f"<think>{'I see. ' * 6}</think>So {CALL}\n{OTHER}"
    options = {**CHAT, **written(text), "request_id": f"moving-{at}"}
    expected = await client.complete("calls", **options)
    stream, migration = await moved(client, lambda: client.generate("calls", **options), at)
    result = await stream.result()
    assert [one.outcome for one in migration.requests] == ["MOVED"]
    for field in ("text", "reasoning", "tool_calls", "token_ids", "finish_reason"):
        assert getattr(result, field) == getattr(expected, field), field
    assert called(result) == [ADDED, ("now", {})]


@pytest.fixture(scope="module")
def plain(cluster: Cluster, model: Path, engine: str) -> Iterator[str]:
    """A deployment without parsers."""
    cluster.client.deploy("plain", f"file://{model}", engine=engine, keep_alive=600.0)
    yield "plain"
    cluster.client.delete("plain")
    cluster.wait_for_instances(0, "plain")


def whole(result: sllm.Result) -> list[tuple[str, Any]]:
    """Calls, but for the last one that was cut: a model of random weights calls and calls."""
    cut = result.finish_reason == "LENGTH"
    calls = result.tool_calls[: len(result.tool_calls) - cut]
    return called(dataclasses.replace(result, tool_calls=calls))


def test_a_call_can_be_required(cluster: Cluster, plain: str) -> None:
    found = []
    for seed in range(6):
        options = {**CHAT, "temperature": 1.0, "seed": seed, "tools": SHORT}
        result = cluster.client.complete(plain, **options, tool_choice="required")
        assert (result.text, result.reasoning) == ("", "")
        assert result.finish_reason in ("TOOL_CALLS", "LENGTH")
        found += whole(result)
    assert len(found) > 2
    assert {name for name, _ in found} <= {"pick", "put"}
    assert all(arguments["b"] in ("x", "yy") for _, arguments in found)


def test_a_tool_can_be_named(cluster: Cluster, plain: str) -> None:
    named: sllm.NamedTool = {"type": "function", "function": {"name": "add"}}
    result = cluster.client.complete(plain, **CHAT, tool_choice=named)
    ((name, arguments),) = called(result)
    assert (name, arguments["b"]) in {("add", "x"), ("add", "yy")}
    assert (result.text, result.finish_reason) == ("", "TOOL_CALLS")


def test_without_a_parser_calls_are_text(cluster: Cluster, plain: str) -> None:
    text = ANSWERS["a call"][0]
    result = cluster.client.complete(plain, **CHAT, **written(text))
    assert (result.text, result.tool_calls) == (text, ())


async def test_a_call_that_is_due_is_none_of_the_parsers(client: sllm.AsyncClient) -> None:
    """Nothing is thought before it, although thoughts are looked for."""
    named: sllm.NamedTool = {"type": "function", "function": {"name": "now"}}
    result = await client.complete("calls", **CHAT, tool_choice=named)
    assert (called(result), result.reasoning) == ([("now", {})], "")


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
    "two of a name": {"tool_choice": "required", "tools": [NOW, NOW]},
    "arguments that are no object": {
        "tool_choice": "required",
        "tools": [
            {"type": "function", "function": {"name": "a", "parameters": {"type": "string"}}}
        ],
    },
}


@pytest.mark.parametrize("what", BAD)
async def test_bad_choices_are_refused(client: sllm.AsyncClient, what: str) -> None:
    with pytest.raises(errors.InvalidPrompt):
        await client.complete("calls", **{**CHAT, **BAD[what]})


@pytest.mark.skipif("vllm" not in ENGINES, reason="parsers are vLLM's")
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
