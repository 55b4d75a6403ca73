"""Messages in the types of Anthropic's own package."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from anthropic.types import (
    ContentBlock,
    Message,
    StopReason,
    TextBlock,
    ThinkingBlock,
    ToolUseBlock,
    Usage,
)

import sllm
from sllm import Result, ToolCall
from sllm.gateway import receipts


def stop_reason(reason: sllm.FinishReason, stop: str | None) -> StopReason:
    """Why a message has ended."""
    if reason is sllm.FinishReason.LENGTH:
        return "max_tokens"
    if reason is sllm.FinishReason.TOOL_CALLS:
        return "tool_use"
    return "end_turn" if stop is None else "stop_sequence"


def usage(found: sllm.Usage) -> Usage:
    """Tokens: those of the prompt are counted apart that were in the cache."""
    return Usage(
        input_tokens=found.prompt_tokens - found.cached_prompt_tokens,
        cache_creation_input_tokens=0,
        cache_read_input_tokens=found.cached_prompt_tokens,
        output_tokens=found.completion_tokens,
    )


def message_id(request_id: str) -> str:
    """The id of the message that answers a request."""
    return f"msg_{request_id}"


def message(model: str, request_id: str, result: Result, *, one_call: bool) -> Message:
    """A whole message."""
    more: Any = {"sllm": receipts.own(request_id, result.receipt)}
    return Message(
        id=message_id(request_id),
        content=_blocks(result, result.tool_calls[:1] if one_call else result.tool_calls),
        model=model,
        role="assistant",
        stop_reason=stop_reason(result.finish_reason, result.stop),
        stop_sequence=result.stop,
        type="message",
        usage=usage(result.usage),
        **more,
    )


def begun(model: str, request_id: str, prompt_tokens: int) -> Message:
    """A message of which nothing is there yet."""
    return Message(
        id=message_id(request_id),
        content=[],
        model=model,
        role="assistant",
        stop_reason=None,
        stop_sequence=None,
        type="message",
        usage=Usage(input_tokens=prompt_tokens, output_tokens=0),
    )


def _blocks(result: Result, calls: Sequence[ToolCall]) -> list[ContentBlock]:
    found: list[ContentBlock] = []
    if result.reasoning:
        found.append(ThinkingBlock(type="thinking", thinking=result.reasoning, signature=""))
    if result.text or not calls:
        found.append(TextBlock(type="text", text=result.text))
    return [*found, *map(_call, calls)]


def _call(call: ToolCall) -> ToolUseBlock:
    return ToolUseBlock(
        type="tool_use",
        id=call.get("id", ""),
        name=call["function"]["name"],
        input=_arguments(call["function"]["arguments"]),
    )


def _arguments(given: Mapping[str, Any] | str) -> dict[str, object]:
    """Those of a call that was cut off are nothing."""
    if not isinstance(given, str):
        return dict(given)
    try:
        found = json.loads(given)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
