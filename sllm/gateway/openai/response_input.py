"""What a response is asked of: items, as messages of a conversation."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from sllm import errors
from sllm.gateway.openai import conversation

_TEXTS: Final = ("input_text", "output_text", "text")


def messages(
    instructions: str | None, given: str | Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The conversation.

    Raises:
        errors.InvalidRequest: An item is not served.
    """
    found: list[dict[str, Any]] = []
    if instructions:
        found.append({"role": "system", "content": instructions})
    if isinstance(given, str):
        return [*found, {"role": "user", "content": given}]
    for place, item in enumerate(given):
        _add(found, item, f"input.{place}")
    return conversation.messages(found)


def _add(found: list[dict[str, Any]], item: Mapping[str, Any], where: str) -> None:
    match item.get("type", "message"):
        case "message":
            content = _content(item.get("content"), where)
            found.append({"role": item.get("role"), "content": content})
        case "function_call":
            _add_call(found, item)
        case "function_call_output":
            content = _content(item.get("output"), where)
            call_id = item.get("call_id")
            found.append({"role": "tool", "tool_call_id": call_id, "content": content})
        case "reasoning":
            pass  # as templates would have it, thoughts are not said again
        case kind:
            raise _not_served(where, kind)


def _add_call(found: list[dict[str, Any]], item: Mapping[str, Any]) -> None:
    """Calls that follow one another, or what was said before them, are one message."""
    function = {"name": item.get("name"), "arguments": item.get("arguments") or "{}"}
    call = {"id": item.get("call_id") or "", "type": "function", "function": function}
    if not found or found[-1].get("role") != "assistant":
        found.append({"role": "assistant", "content": ""})
    found[-1].setdefault("tool_calls", []).append(call)


def _content(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise _not_served(where, content)
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else part
        if kind not in _TEXTS or not isinstance(part.get("text"), str):
            raise _not_served(where, kind)
        texts.append(part["text"])
    return "\n".join(texts)


def _not_served(where: str, kind: object) -> errors.InvalidPrompt:
    return errors.InvalidPrompt(
        f"{where}: {kind!r:.80} is not served; text, calls of functions and their outputs are",
        metadata={"param": where},
    )
