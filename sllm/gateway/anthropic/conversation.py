"""Conversations and tools in Anthropic's words, as `generate` takes them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from sllm import errors
from sllm.gateway.anthropic.content import check as check_blocks
from sllm.gateway.failures import invalid
from sllm.gateway.fields import only

_THOUGHTS: Final = ("thinking", "redacted_thinking")
"""What the model has thought is not said to it again, as templates would have it."""

_TOOL: Final = (
    *("name", "description", "input_schema", "type", "strict"),
    *("cache_control", "eager_input_streaming"),
)
"""Of a tool: what is said of it, and what changes nothing of it."""


def messages(system: Any, given: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The conversation in OpenAI's form.

    Raises:
        errors.InvalidPrompt: A message or a block is not served.
    """
    found: list[dict[str, Any]] = []
    if system:
        check_blocks(system, "system")
        found.append({"role": "system", "content": _text(system, "system")})
    for place, message in enumerate(given):
        found += _message(message, f"messages.{place}")
    return found


def _message(message: Mapping[str, Any], where: str) -> Iterable[dict[str, Any]]:
    role, content = message.get("role"), message.get("content")
    if unknown := sorted(message.keys() - {"role", "content"}):
        raise invalid(f"{where}.{unknown[0]} is not served", f"{where}.{unknown[0]}")
    if role not in ("user", "assistant", "system"):
        raise _not_served(f"{where}.role", role, '"user" and "assistant"')
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    check_blocks(content, f"{where}.content")
    if not isinstance(content, list) or not all(isinstance(one, Mapping) for one in content):
        raise _not_served(f"{where}.content", content, "a text or a list of blocks")
    if role == "assistant":
        return [_assistant(content, where)]
    return _user(role, content, where)


def _assistant(blocks: Sequence[Mapping[str, Any]], where: str) -> dict[str, Any]:
    said = [one for one in blocks if one.get("type") not in ("tool_use", *_THOUGHTS)]
    calls = [_call(one, where) for one in blocks if one.get("type") == "tool_use"]
    found: dict[str, Any] = {"role": "assistant", "content": _text(said, where)}
    return {**found, "tool_calls": calls} if calls else found


def _call(block: Mapping[str, Any], where: str) -> dict[str, Any]:
    name, arguments = block.get("name"), block.get("input")
    if not isinstance(name, str) or not isinstance(arguments, Mapping):
        raise _not_served(where, block, "a tool_use with a name and an input")
    function = {"name": name, "arguments": dict(arguments)}
    return {"id": block.get("id") or "", "type": "function", "function": function}


def _user(role: str, blocks: Sequence[Mapping[str, Any]], where: str) -> Iterable[dict[str, Any]]:
    """Results of tools are messages of their own, before or behind what is said beside them."""
    said: list[Mapping[str, Any]] = []
    for block in blocks:
        if block.get("type") != "tool_result":
            said.append(block)
            continue
        if said:
            yield {"role": role, "content": _content(said, where)}
            said = []
        text = _text(block.get("content") or "", where)
        yield {"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": text}
    if said or not blocks:
        yield {"role": role, "content": _content(said, where)}


def _content(blocks: Sequence[Mapping[str, Any]], where: str) -> str | list[dict[str, Any]]:
    """Blocks as a text, or as parts where some are images."""
    if not any(one.get("type") == "image" for one in blocks):
        return _text(blocks, where)
    return [
        _image(one, where)
        if one.get("type") == "image"
        else {"type": "text", "text": _text([one], where)}
        for one in blocks
    ]


def _image(block: Mapping[str, Any], where: str) -> dict[str, Any]:
    match only(block, where, "type", "source", "cache_control").get("source"):
        case {"type": "base64", "media_type": str(kind), "data": str(data)}:
            url = f"data:{kind};base64,{data}"
        case {"type": "url", "url": str(url)}:
            pass
        case source:
            raise _not_served(f"{where}.source", source, "base64 with a media_type, and url,")
    return {"type": "image_url", "image_url": {"url": url}}


def _text(content: Any, where: str) -> str:
    """Blocks of text as one."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise _not_served(where, content, "a text or a list of blocks")
    for block in content:
        kind = block.get("type") if isinstance(block, Mapping) else block
        if kind != "text" or not isinstance(block.get("text"), str):
            raise _not_served(where, kind, "blocks of text")
    return "\n".join(block["text"] for block in content)


def _not_served(where: str, value: object, taken: str) -> errors.InvalidPrompt:
    return errors.InvalidPrompt(
        f"{where}: {value!r:.80} is not served; {taken} are", metadata={"param": where}
    )


def tools(given: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Tools that are functions, in OpenAI's form.

    Raises:
        errors.InvalidArgument: One is none.
    """
    found = []
    for place, one in enumerate(given):
        if one.get("type") not in (None, "custom"):
            message = f"tools.{place}: {one['type']!r:.80} is run by Anthropic, and not here"
            raise invalid(message, f"tools.{place}.type")
        only(one, f"tools.{place}", *_TOOL)
        function: dict[str, Any] = {
            "name": one.get("name"),
            "description": one.get("description") or "",
            "parameters": one.get("input_schema") or {},
        }
        if one.get("strict") is not None:
            function["strict"] = one["strict"]
        found.append({"type": "function", "function": function})
    return found


def tool_choice(given: Mapping[str, Any]) -> Any:
    """Which tools are to be called, in OpenAI's form.

    Raises:
        errors.InvalidArgument: It is none that is known.
    """
    only(given, "tool_choice", "type", "name", "disable_parallel_tool_use")
    match given.get("type"):
        case "any":
            return "required"
        case "tool" if isinstance(given.get("name"), str):
            return {"type": "function", "function": {"name": given["name"]}}
        case "tool":
            raise invalid("tool_choice of type tool names one", "tool_choice")
        case "auto" | "none" as mode:
            return mode
        case kind:
            raise invalid(f"tool_choice has no type {kind!r:.80}", "tool_choice")
