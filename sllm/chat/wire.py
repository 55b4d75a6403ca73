"""Conversations from the protocol's messages."""

from serverlessllm.v1 import types_pb2 as pb

from sllm.chat.conversation import (
    ChatMessage,
    Conversation,
    Tool,
    ToolCall,
    ToolChoice,
    ToolChoiceMode,
)
from sllm.errors import InvalidPrompt


def conversation(chat: pb.ChatMessages) -> Conversation:
    """A conversation, not checked.

    Raises:
        InvalidPrompt: It has a part that is no text, as a later version of the protocol may have.
    """
    continues = chat.continue_final_message
    return Conversation(
        messages=tuple(map(_message, chat.messages)),
        tools=tuple(map(tool, chat.tools)),
        arguments=chat.template_arguments,
        add_generation_prompt=(
            chat.add_generation_prompt if chat.HasField("add_generation_prompt") else not continues
        ),
        continue_final_message=continues,
        tool_choice=tool_choice(chat.tool_choice),
        template=chat.chat_template,
    )


def tool(message: pb.Tool) -> Tool:
    """What a model may have called."""
    return Tool(message.name, message.description, message.parameters)


def tool_choice(message: pb.ToolChoice) -> ToolChoice:
    """Whether tools are called.

    Raises:
        InvalidPrompt: In a way that this version does not know.
    """
    if message.WhichOneof("choice") == "function":
        return ToolChoice(function=message.function)
    mode = message.mode or ToolChoiceMode.AUTO
    if mode not in ToolChoiceMode._value2member_map_:
        raise InvalidPrompt(f"tool_choice {mode} is unknown")
    return ToolChoice(ToolChoiceMode(mode))


def parsing(message: pb.OutputParsing) -> Conversation:
    """The conversation that an answer is of, as far as it takes to take it apart.

    Raises:
        InvalidPrompt: Tools are called in a way that this version does not know.
    """
    return Conversation(
        messages=(),
        tools=tuple(map(tool, message.tools)),
        arguments=message.template_arguments,
        tool_choice=tool_choice(message.tool_choice),
    )


def output_parsing(chat: pb.ChatMessages) -> pb.OutputParsing:
    """What of a conversation it takes to take its answer apart."""
    return pb.OutputParsing(
        tools=chat.tools,
        tool_choice=chat.tool_choice if chat.HasField("tool_choice") else None,
        template_arguments=chat.template_arguments,
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
