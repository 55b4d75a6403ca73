"""Conversations from the protocol's messages."""

from serverlessllm.v1 import inference_service_pb2 as inference_pb
from serverlessllm.v1 import types_pb2 as pb

from sllm.chat.conversation import (
    ChatMessage,
    Conversation,
    Tool,
    ToolCall,
    ToolChoice,
    ToolChoiceMode,
)
from sllm.chat.images import Image
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
        parts=tuple(map(_part, message.parts)),
        tool_calls=tuple(ToolCall(one.id, one.name, one.arguments) for one in message.tool_calls),
        tool_call_id=message.tool_call_id,
        name=message.name,
    )


def _part(part: pb.ContentPart) -> str | Image:
    match part.WhichOneof("part"):
        case "text":
            return part.text
        case "image":
            return image(part.image)
        case _:
            raise InvalidPrompt("content has a part that is neither text nor an image")


def image(message: pb.Image) -> Image:
    """An image, not looked at; of one that is yet to be fetched, nothing."""
    return Image(message.data, message.media_type)


def image_messages(chat: pb.ChatMessages) -> list[pb.Image]:
    """The images of a conversation, in their order."""
    return [part.image for one in chat.messages for part in one.parts if part.HasField("image")]


def keep_images(request: inference_pb.GenerateRequest) -> None:
    """Keeps the images of a conversation whose place its tokens are about to take."""
    if found := image_messages(request.messages):
        request.ClearField("images")
        request.images.extend(found)
