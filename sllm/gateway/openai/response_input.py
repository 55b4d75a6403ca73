"""What a response is asked of: items, as messages of a conversation."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from sllm import errors
from sllm.gateway.fields import only
from sllm.gateway.openai import conversation

_TEXTS: Final = ("input_text", "output_text", "text")
_PART: Final = ("type", "text", "annotations", "logprobs", "prompt_cache_breakpoint")
"""Of a text: what it says, and what answers tell of it or of the cache, which changes nothing."""
_ITEMS: Final[Mapping[str, Sequence[str]]] = {
    "message": ("role", "content", "phase"),
    "function_call": ("call_id", "name", "arguments"),
    "function_call_output": ("call_id", "output"),
}
"""Of each type of item: what is served, beside what an answer calls it."""


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
    kind = item.get("type", "message")
    if isinstance(kind, str) and kind in _ITEMS:
        only(item, where, "type", "id", "status", *_ITEMS[kind])
    match kind:
        case "message":
            content = _said(item.get("content"), where)
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


def _said(content: Any, where: str) -> str | list[dict[str, Any]]:
    """What a message says: a text, or parts where some are images."""
    if not isinstance(content, list) or not any(map(_is_image, content)):
        return _content(content, where)
    return [
        _image(part) if _is_image(part) else {"type": "text", "text": _content([part], where)}
        for part in content
    ]


def _is_image(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "input_image"


def _image(part: Mapping[str, Any]) -> dict[str, Any]:
    described = {name: value for name, value in part.items() if name != "type"}
    described["url"] = described.pop("image_url", None)
    return {"type": "image_url", "image_url": described}


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
        texts.append(only(part, where, *_PART)["text"])
    return "\n".join(texts)


def _not_served(where: str, kind: object) -> errors.InvalidPrompt:
    return errors.InvalidPrompt(
        f"{where}: {kind!r:.80} is not served; text, calls of functions and their outputs are",
        metadata={"param": where},
    )
