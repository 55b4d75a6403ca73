"""Conversations from the protocol's messages."""

from serverlessllm.v1 import types_pb2 as pb

from sllm.chat.conversation import ChatMessage, Conversation, Tool, ToolCall
from sllm.errors import InvalidPrompt


def conversation(chat: pb.ChatMessages) -> Conversation:
    """A conversation, not checked.

    Raises:
        InvalidPrompt: It has a part that is no text, as a later version of the protocol may have.
    """
    continues = chat.continue_final_message
    return Conversation(
        messages=tuple(map(_message, chat.messages)),
        tools=tuple(Tool(one.name, one.description, one.parameters) for one in chat.tools),
        arguments=chat.template_arguments,
        add_generation_prompt=(
            chat.add_generation_prompt if chat.HasField("add_generation_prompt") else not continues
        ),
        continue_final_message=continues,
    )


def _message(message: pb.ChatMessage) -> ChatMessage:
    return ChatMessage(
        role=message.role,
        content=message.content,
        parts=tuple(map(_text, message.parts)),
        tool_calls=tuple(ToolCall(one.id, one.name, one.arguments) for one in message.tool_calls),
        tool_call_id=message.tool_call_id,
        name=message.name,
    )


def _text(part: pb.ContentPart) -> str:
    if not part.HasField("text"):
        raise InvalidPrompt("content has a part that is no text; only text is taken")
    return part.text
