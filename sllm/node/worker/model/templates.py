"""Chat templates: programs that come with a model, run within bounds."""

import operator
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

from jinja2.exceptions import TemplateSyntaxError
from jinja2.sandbox import SandboxedEnvironment

from sllm.chat.conversation import ChatMessage, Conversation, Tool, ToolCall, json_object
from sllm.chat.images import Image
from sllm.errors import InvalidChatTemplate, InvalidPrompt, NoChatTemplate
from sllm.node.worker.model.prompts import RenderedPrompt
from sllm.node.worker.model.refusing import sentence
from sllm.node.worker.model.time_limit import TookTooLong, time_limit

RENDER_SECONDS = 2.0
"""Of a processor's time that a template may take: a thousand times what they do."""
ADDED_LETTERS = 1 << 22
"""That a template may add to those of the messages; and that one operation may make."""
_LONGEST_NUMBER = 1 << 16
"""Bits."""
_PROBE = "sllm-part"


def render(conversation: Conversation, tokenizer: Any) -> RenderedPrompt:
    """Writes a conversation as a chat template has it: the deployment's, or else the model's own.

    Args:
        conversation: what the caller sent.
        tokenizer: the model's, from transformers.

    Raises:
        InvalidPrompt: The template refuses the messages, fails over them, takes too long, or makes
            too much of them.
        InvalidChatTemplate: The template is no Jinja.
        NoChatTemplate: The model has none.
    """
    if not (conversation.template or tokenizer.chat_template):
        raise NoChatTemplate("this model has no chat template; send text or token ids instead")
    conversation.validate()
    wants_parts = _has_parts(conversation) and _wants_parts(conversation, tokenizer)
    if conversation.images and not wants_parts:
        raise InvalidPrompt(
            "the chat template knows texts alone, and writes no images: deploy with a "
            "chat_template that does"
        )
    text = _apply(conversation, tokenizer, [_seen(m, wants_parts) for m in conversation.messages])
    if len(text) > ADDED_LETTERS + conversation.letters:
        raise InvalidPrompt(f"the chat template makes {len(text)} letters of these messages")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidPrompt(f"the chat template makes half a character: {error}") from error
    return RenderedPrompt(text, conversation.images)


def _apply(conversation: Conversation, tokenizer: Any, messages: list[dict[str, Any]]) -> str:
    options = {
        "tools": [_seen_tool(tool) for tool in conversation.told_tools] or None,
        "add_generation_prompt": conversation.add_generation_prompt,
        "continue_final_message": conversation.continue_final_message,
        **conversation.variables(),
    }
    if conversation.template:
        options["chat_template"] = conversation.template
    return _run(lambda: tokenizer.apply_chat_template(messages, tokenize=False, **options))


def _has_parts(conversation: Conversation) -> bool:
    return any(message.parts for message in conversation.messages)


def _wants_parts(conversation: Conversation, tokenizer: Any) -> bool:
    """Whether a template writes the parts of a content that is a list: it is tried out.

    One that knows texts alone fails over a list, or writes it as Python does.
    """
    asked = replace(conversation, continue_final_message=False, add_generation_prompt=True)
    content = [{"type": "text", "text": _PROBE}, {"type": "text", "text": _PROBE}]
    try:
        text = _apply(asked, tokenizer, [{"role": "user", "content": content}])
    except InvalidPrompt:
        return False
    return text.count(_PROBE) == len(content) and "'text'" not in text


def _seen(message: ChatMessage, wants_parts: bool) -> dict[str, Any]:
    """A message as templates know it; what is not there has no name."""
    content: Any = message.content or (None if message.tool_calls else "")
    if message.parts:
        as_list = [_seen_part(part) for part in message.parts]
        content = as_list if wants_parts else "\n".join(message.texts)
    seen = {"role": message.role, "content": content}
    if message.tool_calls:
        seen["tool_calls"] = [_seen_call(call) for call in message.tool_calls]
    if message.tool_call_id:
        seen["tool_call_id"] = message.tool_call_id
    if message.name:
        seen["name"] = message.name
    return seen


def _seen_part(part: str | Image) -> dict[str, str]:
    """A part as templates know it: of an image they write that it is there."""
    return {"type": "image"} if isinstance(part, Image) else {"type": "text", "text": part}


def _seen_call(call: ToolCall) -> dict[str, Any]:
    arguments = json_object(call.arguments, "arguments")
    function = {"name": call.name, "arguments": arguments}
    return {"id": call.call_id, "type": "function", "function": function}


def _seen_tool(tool: Tool) -> dict[str, Any]:
    parameters = json_object(tool.parameters, "parameters")
    function = {"name": tool.name, "description": tool.description, "parameters": parameters}
    return {"type": "function", "function": function}


def _run(template: Callable[[], object]) -> str:
    _bound_operators()
    try:
        with time_limit(RENDER_SECONDS):
            return str(template())
    except TookTooLong as error:
        raise InvalidPrompt(
            f"the chat template takes more than {RENDER_SECONDS} s for these messages"
        ) from error
    except TemplateSyntaxError as error:
        raise InvalidChatTemplate(
            f"the chat template is no Jinja, in line {error.lineno}: {error.message}"
        ) from error
    except Exception as error:  # templates fail in every way that programs do
        raise InvalidPrompt(
            f"the chat template refuses these messages: {sentence(error)}"
        ) from error


@cache
def _bound_operators() -> None:
    """Has jinja's sandbox look at operations that take memory, or time in C, by their operands.

    No time limit gets in there: one `10 ** 10 ** 10` would hold this process up for good.
    """
    SandboxedEnvironment.intercepted_binops = frozenset({"*", "**"})
    SandboxedEnvironment.default_binop_table = {
        **SandboxedEnvironment.default_binop_table,
        "*": _times,
        "**": _power,
    }


def _times(left: Any, right: Any) -> Any:
    for one, count in ((left, right), (right, left)):
        repeats = isinstance(one, (str, list, tuple)) and isinstance(count, int)
        if repeats and len(one) * count > ADDED_LETTERS:
            raise OverflowError(f"{len(one)} letters or entries, {count} times, are too many")
    if _bits(left) + _bits(right) > _LONGEST_NUMBER:
        raise OverflowError("the product is too long a number")
    return operator.mul(left, right)


def _power(left: Any, right: Any) -> Any:
    if isinstance(right, int) and _bits(left) * right > _LONGEST_NUMBER:
        raise OverflowError("the power is too long a number")
    return operator.pow(left, right)


def _bits(number: Any) -> int:
    return number.bit_length() if isinstance(number, int) else 0
