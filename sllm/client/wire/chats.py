"""Conversations, from what callers say to the protocol's messages."""

from base64 import b64decode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from serverlessllm.v1 import types_pb2 as pb

from sllm import errors
from sllm.client.types.chats import (
    ChatMessage,
    ContentPart,
    NamedTool,
    Tool,
    ToolCall,
    ToolChoice,
)
from sllm.client.wire.forms import json_text

_MODES: Final = {
    "auto": pb.TOOL_CHOICE_MODE_AUTO,
    "none": pb.TOOL_CHOICE_MODE_NONE,
    "required": pb.TOOL_CHOICE_MODE_REQUIRED,
}


@dataclass(frozen=True, slots=True)
class Chat:
    """How a conversation is rendered."""

    tools: Sequence[Tool] | None = None
    arguments: Mapping[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    tool_choice: ToolChoice | NamedTool | None = None


def chat_messages(messages: Sequence[ChatMessage], chat: Chat) -> pb.ChatMessages:
    """The conversation in the protocol.

    Raises:
        errors.InvalidPrompt: A message or tool is none.
    """
    return pb.ChatMessages(
        messages=map(_message, messages),
        tools=map(_tool, chat.tools or ()),
        template_arguments=_json(chat.arguments or "", "template_arguments"),
        add_generation_prompt=chat.add_generation_prompt,
        continue_final_message=chat.continue_final_message,
        tool_choice=None if chat.tool_choice is None else _choice(chat.tool_choice),
    )


def _choice(choice: ToolChoice | NamedTool) -> pb.ToolChoice:
    try:
        if isinstance(choice, str):
            return pb.ToolChoice(mode=_MODES[choice])
        return pb.ToolChoice(function=choice["function"]["name"])
    except (KeyError, TypeError) as error:
        raise errors.InvalidPrompt(
            'tool_choice is "auto", "none", "required" or {"type": "function", "function": '
            f'{{"name": "add"}}}}, not {choice!r:.200}'
        ) from error


def _message(message: ChatMessage) -> pb.ChatMessage:
    try:
        content = message.get("content")
        calls = message.get("tool_calls") or ()
        if content is None and not calls:
            raise KeyError("content")
        content = content or ""
        return pb.ChatMessage(
            role=message["role"],
            content=content if isinstance(content, str) else "",
            parts=() if isinstance(content, str) else map(_part, content),
            tool_calls=map(_call, calls),
            tool_call_id=message.get("tool_call_id") or "",
            name=message.get("name") or "",
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise errors.InvalidPrompt(
            f'a message is {{"role": "user", "content": "Hi"}}, not {message!r:.200}'
        ) from error


def _part(part: ContentPart) -> pb.ContentPart:
    match part:
        case {"type": "text", "text": str(text)}:
            return pb.ContentPart(text=text)
        case {"type": "image", "data": bytes(data)}:
            return _image(data=data, media_type=part.get("media_type") or "")
        case {"type": "image_url", "image_url": {"url": str(url)}}:
            return _located(url)
        case {"type": "text" | "image" | "image_url"}:
            raise KeyError("what it is made of")
        case _:
            raise errors.InvalidPrompt(
                f"content has a part of type {part['type']!r:.80}; text and images are taken"
            )


def _located(url: str) -> pb.ContentPart:
    """An image by its URL, which may be the image itself."""
    scheme, _, rest = url.partition(":")
    if scheme.lower() != "data":
        return _image(url=url)
    described, found, content = rest.partition(",")
    media_type, _, encoding = described.partition(";")
    if not found or encoding.lower() != "base64":
        raise errors.InvalidImage("a data URL of an image is data:image/png;base64,… or the like")
    return _image(data=from_base64(content), media_type=media_type)


def from_base64(text: str) -> bytes:
    """The bytes of an image.

    Raises:
        errors.InvalidImage: It is no base64.
    """
    try:
        return b64decode(text, validate=True)
    except ValueError as error:
        raise errors.InvalidImage(f"an image is no base64: {error}") from error


def _image(**fields: Any) -> pb.ContentPart:
    return pb.ContentPart(image=pb.Image(**fields))


def _call(call: ToolCall) -> pb.ToolCall:
    function = call["function"]
    arguments = _json(function["arguments"], "arguments")
    return pb.ToolCall(id=call.get("id") or "", name=function["name"], arguments=arguments)


def _tool(tool: Tool) -> pb.Tool:
    try:
        function = tool["function"]
        return pb.Tool(
            name=function["name"],
            description=function.get("description") or "",
            parameters=_json(function.get("parameters") or "", "parameters"),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise errors.InvalidPrompt(
            'a tool is {"type": "function", "function": {"name": "f", "parameters": {…}}}, '
            f"not {tool!r:.200}"
        ) from error


def _json(value: Mapping[str, Any] | str, what: str) -> str:
    return json_text(value, what, errors.InvalidPrompt)
