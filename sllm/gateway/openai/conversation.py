"""Conversations, tools and forms in OpenAI's words, as `generate` takes them."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from sllm import errors
from sllm.gateway.failures import invalid

_KNOWN: Final = {"role", "content", "name", "tool_calls", "tool_call_id"}
_UNSAID: Final = {"reasoning", "reasoning_content"}
"""What an answer has, and whoever sends it back does not mean to say."""
_EMPTY: Final[tuple[Any, ...]] = (None, [], "")
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
        return {"type": "text", "text": part.get("refusal", "")}
    if not isinstance(part, Mapping) or part.get("type") != "text":
        kind = part.get("type") if isinstance(part, Mapping) else part
        raise errors.InvalidPrompt(
            f"{where} has a part of type {kind!r:.80}; only text is taken",
            metadata={"param": where},
        )
    return {"type": "text", "text": part.get("text")}


def tools(given: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Tools that are functions.

    Raises:
        errors.InvalidArgument: One is none.
    """
    for place, one in enumerate(given):
        if one.get("type") != "function":
            message = f"tools.{place} is of type {one.get('type')!r:.80}; only functions are taken"
            raise invalid(message, f"tools.{place}.type")
    return [dict(one) for one in given]


def tool_choice(given: str | Mapping[str, Any]) -> Any:
    """Which tools are to be called.

    Raises:
        errors.InvalidArgument: It is not served.
    """
    if isinstance(given, Mapping) and given.get("type") != "function":
        kind = given.get("type")
        message = f"tool_choice of type {kind!r:.80} is not served; name a function"
        raise invalid(message, "tool_choice")
    return given


def form(given: Mapping[str, Any] | None, where: str) -> dict[str, Any] | None:
    """The form that a text is to have. None: any.

    Raises:
        errors.InvalidArgument: It is none that is known.
    """
    match (given or {}).get("type", "text"):
        case "text":
            return None
        case "json_object":
            return {"json_object": True}
        case "json_schema":
            assert given is not None
            described = given.get("json_schema", given)
            schema = described.get("schema") if isinstance(described, Mapping) else None
            if not isinstance(schema, Mapping):
                raise invalid(f"{where}: a json_schema has a schema, an object", where)
            return {"json_schema": schema}
        case kind:
            raise invalid(f"{where} has no type {kind!r:.80}", where)


def set_effort(found: dict[str, Any], effort: str | None) -> None:
    """Has templates know how much to think, in the words that those of common models have."""
    if effort is None:
        return
    given = found.get("template_arguments") or {}
    told = {"reasoning_effort": effort, "enable_thinking": effort != "none"}
    found["template_arguments"] = {**told, **given}
