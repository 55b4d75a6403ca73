"""What an answer has to look like that is a call of a tool."""

import json
from collections.abc import Sequence
from typing import Any

from sllm.chat.conversation import Tool, ToolChoice, json_object


def call_schema(choice: ToolChoice, tools: Sequence[Tool]) -> str:
    """The JSON Schema of an answer that is forced: as vLLM and its parsers have it.

    Args:
        choice: forces one.
        tools: those that may be called.

    Returns:
        Of the arguments alone, if one tool is named; else of an array of calls, one at least.

    Raises:
        InvalidPrompt: Parameters are no JSON object.
    """
    if choice.function:
        (named,) = (one for one in tools if one.name == choice.function)
        return json.dumps(_parameters(named))
    calls = {"type": "object", "anyOf": [_call(one) for one in tools]}
    return json.dumps({"type": "array", "minItems": 1, "items": calls})


def _call(tool: Tool) -> dict[str, Any]:
    return {
        "properties": {
            "name": {"type": "string", "enum": [tool.name]},
            "parameters": _parameters(tool),
        },
        "required": ["name", "parameters"],
        "additionalProperties": False,
    }


def _parameters(tool: Tool) -> dict[str, Any]:
    found = json_object(tool.parameters, "parameters")
    return found or {"type": "object", "properties": {}}
