"""Conversations, tools and forms in OpenAI's words, as `generate` takes them."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from sllm import errors
from sllm.gateway.failures import invalid
from sllm.gateway.fields import only

_KNOWN: Final = {"role", "content", "name", "tool_calls", "tool_call_id"}
_UNSAID: Final = {"reasoning", "reasoning_content"}
"""What an answer has, and whoever sends it back does not mean to say."""
_PART_HARMLESS: Final = ("prompt_cache_breakpoint",)
"""Of a part: prefixes are always kept in the KV cache."""
_EMPTY: Final[tuple[Any, ...]] = (None, [], "")
_SCHEMA: Final = ("name", "description", "schema", "strict")
"""What describes a JSON schema."""
_ROLES: Final = {"developer": "system"}
"""Roles that templates know by other names."""


def messages(given: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The conversation.

    Raises:
        errors.InvalidArgument: A message has a field that is not served.
    """
    return [_message(one, f"messages.{place}") for place, one in enumerate(given)]


def _message(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    for name, value in given.items():
        if name not in _KNOWN | _UNSAID and value not in _EMPTY:
            raise invalid(f"{where}.{name} is not served", f"{where}.{name}")
    found = {name: value for name, value in given.items() if name in _KNOWN and value is not None}
    if isinstance(found.get("role"), str):
        found["role"] = _ROLES.get(found["role"], found["role"])
    if found.get("role") == "assistant" and not found.get("tool_calls"):
        found.setdefault("content", "")
    if isinstance(found.get("content"), list):
        found["content"] = [_part(part, f"{where}.content") for part in found["content"]]
    return found


def _part(part: Any, where: str) -> Any:
    if isinstance(part, Mapping) and part.get("type") == "refusal":
        refusal = only(part, where, "type", "refusal").get("refusal", "")
        return {"type": "text", "text": refusal}
    if isinstance(part, Mapping) and part.get("type") == "image_url":
        named = only(part, where, "type", "image_url", *_PART_HARMLESS)
        return _image(named.get("image_url"), where)
    if not isinstance(part, Mapping) or part.get("type") != "text":
        kind = part.get("type") if isinstance(part, Mapping) else part
        raise errors.InvalidPrompt(
            f"{where} has a part of type {kind!r:.80}; text and image_url are taken",
            metadata={"param": where},
        )
    return {"type": "text", "text": only(part, where, "type", "text", *_PART_HARMLESS).get("text")}


def _image(given: Any, where: str) -> dict[str, Any]:
    """An image by its URL; how much of it a model sees (`detail`) is the model's own affair."""
    url = only(given, f"{where}.image_url", "url", "detail").get("url")
    if not isinstance(url, str):
        raise invalid(f"{where}.image_url.url must be a URL", f"{where}.image_url.url")
    return {"type": "image_url", "image_url": {"url": url}}


def tools(given: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Tools that are functions.

    Raises:
        errors.InvalidArgument: One is none.
    """
    for place, one in enumerate(given):
        if one.get("type") != "function":
            message = f"tools.{place} is of type {one.get('type')!r:.80}; only functions are taken"
            raise invalid(message, f"tools.{place}.type")
        only(one, f"tools.{place}", "type", "function")
        function = one.get("function")
        only(function, f"tools.{place}.function", "name", "description", "parameters", "strict")
    return [dict(one) for one in given]


def set_choice(found: dict[str, Any], given: str | Mapping[str, Any]) -> None:
    """Says which tools are to be called; without any tools there are no calls to ask for.

    Raises:
        errors.InvalidArgument: It is not served, or there is nothing to choose from.
    """
    choice = tool_choice(given)
    if found.get("tools"):
        found["tool_choice"] = choice
    elif choice not in ("none", "auto"):
        raise invalid("tool_choice asks for a call, and there are no tools", "tool_choice")


def tool_choice(given: str | Mapping[str, Any]) -> Any:
    """Which tools are to be called.

    Raises:
        errors.InvalidArgument: It is not served.
    """
    if isinstance(given, Mapping) and given.get("type") != "function":
        kind = given.get("type")
        message = f"tool_choice of type {kind!r:.80} is not served; name a function"
        raise invalid(message, "tool_choice")
    if isinstance(given, Mapping):
        only(given, "tool_choice", "type", "function")
        function = only(given.get("function"), "tool_choice.function", "name")
        if not isinstance(function.get("name"), str):
            raise invalid("tool_choice names a function", "tool_choice")
    return given


def set_form(found: dict[str, Any], given: Any, where: str) -> None:
    """Says which form the text is to have.

    Raises:
        errors.InvalidArgument: It is none that is known, or there is another.
    """
    if wanted := form(given, where):
        if "structured_output" in found:
            raise invalid(f"give {where} or structured_output, not both", where)
        found["structured_output"] = wanted


def form(given: Any, where: str) -> dict[str, Any] | None:
    """The form that a text is to have. None: any.

    Raises:
        errors.InvalidArgument: It is none that is known.
    """
    if given is None:
        return None
    match only(given, where, "type", "json_schema", *_SCHEMA).get("type"):
        case "text":
            return None
        case "json_object":
            return {"json_object": True}
        case "json_schema":
            described = only(given.get("json_schema", given), where, "type", *_SCHEMA)
            schema = described.get("schema")
            if not isinstance(schema, Mapping):
                raise invalid(f"{where}: a json_schema has a schema, an object", where)
            return {"json_schema": schema}
        case kind:
            raise invalid(f"{where} has no type {kind!r:.80}", where)


def set_effort(found: dict[str, Any], effort: Any, where: str) -> None:
    """Has templates know how much to think, in the words that those of common models have.

    Raises:
        errors.InvalidArgument: It is no word.
    """
    if effort is None:
        return
    if not isinstance(effort, str):
        raise invalid(f"{where} must be a text, not {type(effort).__name__}", where)
    given = found.get("template_arguments") or {}
    told = {"reasoning_effort": effort, "enable_thinking": effort != "none"}
    found["template_arguments"] = {**told, **given}
