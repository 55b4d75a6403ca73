"""Answers that are calls of tools: what they have to look like, and what calls are named."""

import json
from collections.abc import Sequence
from hashlib import blake2s
from typing import Any, Final

from sllm.chat.conversation import Tool, ToolChoice, json_object
from sllm.errors import InvalidPrompt

_COMPACT: Final = {"whitespace_flexible": False}
"""Blanks between the parts of a call are of no use to anybody; a model may write them for ever."""


def call_id(request_id: str, index: int) -> str:
    """Of a call, the same wherever its answer is taken apart."""
    return f"call-{blake2s(f'{request_id}/{index}'.encode(), digest_size=8).hexdigest()}"


def call_schema(choice: ToolChoice, tools: Sequence[Tool]) -> str:
    """The JSON Schema of an answer that is forced.

    Args:
        choice: forces one.
        tools: those that may be called, each with a name of its own.

    Returns:
        Of the arguments alone, if one tool is named; else of an array of calls, one at least, each
        with `name` and `parameters`, in this order.

    Raises:
        InvalidPrompt: Parameters are no JSON object, or describe none.
    """
    try:
        if choice.function:
            (named,) = (one for one in tools if one.name == choice.function)
            return json.dumps({"x-guidance": _COMPACT, **_parameters(named)})
        return json.dumps(_calls(tools))
    except RecursionError as error:
        raise InvalidPrompt("the parameters of a tool are nested too deeply") from error


def _calls(tools: Sequence[Tool]) -> dict[str, Any]:
    found = {f"parameters-{number}": _parameters(tool) for number, tool in enumerate(tools)}
    calls = [_call(tool.name, name) for tool, name in zip(tools, found, strict=True)]
    return {
        "x-guidance": _COMPACT,
        "type": "array",
        "minItems": 1,
        "items": {"anyOf": calls},
        "$defs": {name: _moved(schema, f"#/$defs/{name}") for name, schema in found.items()},
    }


def _call(name: str, parameters: str) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"name": {"const": name}, "parameters": {"$ref": f"#/$defs/{parameters}"}},
        "required": ["name", "parameters"],
        "additionalProperties": False,
    }


def _parameters(tool: Tool) -> dict[str, Any]:
    found = json_object(tool.parameters, f"parameters of {tool.name}")
    if found.get("type", "object") != "object":
        raise InvalidPrompt(f"the parameters of {tool.name} are an object, not {found['type']!r}")
    return {"type": "object", **found} if found else {"type": "object", "properties": {}}


def _moved(schema: Any, place: str) -> Any:
    """A schema whose references are to itself, as it is at another place of a document."""
    if isinstance(schema, list):
        return [_moved(one, place) for one in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: place + value[1:]
        if key == "$ref" and isinstance(value, str) and value.startswith("#")
        else _moved(value, place)
        for key, value in schema.items()
    }
