"""Whatever is within a field is served, or refused by its name."""

from typing import Any

import pytest

from sllm import errors
from sllm.gateway.anthropic.requests import CountRequest, MessageRequest
from sllm.gateway.bodies import checked
from sllm.gateway.openai.chat_request import ChatRequest
from sllm.gateway.openai.response_request import ResponseRequest

SAID: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}
GOOD: dict[Any, dict[str, Any]] = {
    ChatRequest: SAID,
    ResponseRequest: {"model": "tiny", "input": "Hi"},
    MessageRequest: {**SAID, "max_tokens": 5},
    CountRequest: SAID,
}
FUNCTION = {"name": "f", "parameters": {"type": "object"}}
SCHEMA = {"type": "json_schema", "schema": {}}
CHOICE = {"type": "function"}
CHAT_TOOL = {"type": "function", "function": FUNCTION}
RESULT = {"type": "tool_result", "tool_use_id": "a", "content": "4", "is_error": True}
CALL = {"type": "tool_use", "id": "a", "name": "f", "input": {}}


def _said(content: list[dict[str, Any]], role: str = "user") -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content}]}


BAD: list[tuple[Any, str, dict[str, Any]]] = [
    (ChatRequest, "reasoning_effort", {"reasoning_effort": 5}),
    (ResponseRequest, "reasoning.effort", {"reasoning": {"effort": 5}}),
    (ResponseRequest, "reasoning.foo", {"reasoning": {"foo": 1}}),
    (ResponseRequest, "text.foo", {"text": {"foo": 1}}),
    (ResponseRequest, "text.format", {"text": {"format": 5}}),
    (ResponseRequest, "text.format", {"text": {"format": "x"}}),
    (ResponseRequest, "text.format.foo", {"text": {"format": {**SCHEMA, "foo": 1}}}),
    (ResponseRequest, "tools.0.foo", {"tools": [{"type": "function", **FUNCTION, "foo": 1}]}),
    (ResponseRequest, "tool_choice", {"tool_choice": {"type": "hosted"}}),
    (ResponseRequest, "tool_choice", {"tool_choice": "required"}),
    (ChatRequest, "tool_choice", {"tool_choice": "required"}),
    (ChatRequest, "tool_choice.function", {"tools": [CHAT_TOOL], "tool_choice": CHOICE}),
    (ChatRequest, "tools.0.foo", {"tools": [{**CHAT_TOOL, "foo": 1}]}),
    (ChatRequest, "tools.0.function", {"tools": [{"type": "function"}]}),
    (
        ChatRequest,
        "tools.0.function.foo",
        {"tools": [{"type": "function", "function": {"foo": 1}}]},
    ),
    (ChatRequest, "response_format.foo", {"response_format": {"type": "text", "foo": 1}}),
    *(
        (ChatRequest, f"messages.0.content.{name}", _said([part]))
        for name, part in (
            ("foo", {"type": "text", "text": "Hi", "foo": 1}),
            ("foo", {"type": "refusal", "refusal": "no", "foo": 1}),
        )
    ),
    *(
        (kind, f"messages.0.content.{name}", _said([block], role))
        for kind in (MessageRequest, CountRequest)
        for role, name, block in (
            ("user", "0.citations", {"type": "text", "text": "Hi", "citations": [{}]}),
            ("user", "0.foo", {**RESULT, "foo": 1}),
            (
                "user",
                "0.content.0.foo",
                {**RESULT, "content": [{"type": "text", "text": "", "foo": 1}]},
            ),
            ("assistant", "0.caller", {**CALL, "caller": {"type": "direct"}}),
            ("assistant", "0.foo", {"type": "thinking", "thinking": "", "foo": 1}),
        )
    ),
    (MessageRequest, "system.0.foo", {"system": [{"type": "text", "text": "", "foo": 1}]}),
    *(
        (kind, param, change)
        for kind in (MessageRequest, CountRequest)
        for param, change in (
            ("thinking.foo", {"thinking": {"type": "enabled", "foo": 1}}),
            ("output_config.foo", {"output_config": {"foo": 1}}),
            ("output_config.effort", {"output_config": {"effort": 5}}),
            ("output_config.format", {"output_config": {"format": {"type": "x", "schema": {}}}}),
            ("tools.0.foo", {"tools": [{"name": "f", "input_schema": {}, "foo": 1}]}),
            ("tool_choice", {"tool_choice": {"type": "tool"}}),
            ("tool_choice", {"tool_choice": {"type": "any"}}),
            ("tool_choice.foo", {"tool_choice": {"type": "auto", "foo": 1}}),
        )
    ),
    *(
        (kind, "allowed_token_ids", {"allowed_token_ids": []})
        for kind in GOOD
        if kind is not CountRequest
    ),
]


@pytest.mark.parametrize(("kind", "param", "change"), BAD)
def test_what_is_within_is_refused_by_name(kind: Any, param: str, change: dict[str, Any]) -> None:
    with pytest.raises(errors.InvalidRequest) as caught:
        _arguments(kind, change)
    assert caught.value.metadata["param"] == param
    assert "Value error" not in caught.value.message


TAKEN: list[tuple[Any, dict[str, Any]]] = [
    (ResponseRequest, {"reasoning": {"effort": "low", "summary": "auto"}, "tool_choice": "auto"}),
    (ResponseRequest, {"text": {"format": {**SCHEMA, "name": "a", "strict": True}}}),
    (ResponseRequest, {"text": {"format": None, "verbosity": None}}),
    (ChatRequest, {"tool_choice": "none", "tools": [CHAT_TOOL], "seed": -5}),
    (ChatRequest, {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}}),
    (MessageRequest, {"thinking": {"type": "enabled", "budget_tokens": 5}}),
    (MessageRequest, {"output_config": {"effort": "low", "format": SCHEMA}}),
    (MessageRequest, _said([RESULT, {"type": "text", "text": "Hi", "citations": None}])),
    (MessageRequest, _said([{**CALL, "cache_control": {"type": "ephemeral"}}], "assistant")),
    (ChatRequest, _said([{"type": "text", "text": "Hi", "prompt_cache_breakpoint": {}}])),
]


@pytest.mark.parametrize(("kind", "change"), TAKEN)
def test_what_asks_for_something_that_is_served(kind: Any, change: dict[str, Any]) -> None:
    assert _arguments(kind, change).get("seed", 0) >= 0


def _arguments(kind: Any, change: dict[str, Any]) -> dict[str, Any]:
    request = checked(kind, {**GOOD[kind], **change})
    found: dict[str, Any] = (request.counted if kind is CountRequest else request.arguments)()
    return found
