"""What is said to a model: conversations in OpenAI's form, tools, and the form that is wanted."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NotRequired, TypedDict


class TextPart(TypedDict):
    """A part of what was said."""

    type: Literal["text"]
    text: str


class ImagePart(TypedDict):
    """An image, as a file's bytes."""

    type: Literal["image"]
    data: bytes
    """PNG, JPEG, WebP or GIF."""
    media_type: NotRequired[str]
    """Such as "image/png". Left out: it is found out."""


class ImageUrl(TypedDict):
    """Where an image is."""

    url: str
    """Of http or https, if the deployment allows its host; or "data:image/png;base64,…"."""


class ImageUrlPart(TypedDict):
    """An image by its URL, in OpenAI's form."""

    type: Literal["image_url"]
    image_url: ImageUrl


ContentPart = TextPart | ImagePart | ImageUrlPart
"""A part of what was said."""


class Function(TypedDict):
    """A function's name, and what it is called with."""

    name: str
    arguments: Mapping[str, Any] | str
    """An object, or its JSON."""


ToolChoice = Literal["auto", "none", "required"]


class ToolCall(TypedDict):
    """A call of a tool that a model has asked for."""

    id: NotRequired[str]
    type: Literal["function"]
    function: Function


class FunctionName(TypedDict):
    """A function by its name."""

    name: str


class NamedTool(TypedDict):
    """The tool that is to be called."""

    type: Literal["function"]
    function: FunctionName


class ChatMessage(TypedDict):
    """One message of a conversation, in OpenAI's form."""

    role: str
    """As the model's chat template knows it, commonly "system", "user", "assistant" or "tool"."""
    content: NotRequired[str | Sequence[ContentPart] | None]
    """What was said."""
    tool_calls: NotRequired[Sequence[ToolCall]]
    """What an assistant has asked for."""
    tool_call_id: NotRequired[str]
    """Of the call whose result this is."""
    name: NotRequired[str]
    """Of the tool whose result this is, or of who speaks."""


class FunctionDescription(TypedDict):
    """What a function does, and takes."""

    name: str
    description: NotRequired[str]
    parameters: NotRequired[Mapping[str, Any]]
    """A JSON Schema."""


class Tool(TypedDict):
    """What a model may have called, in OpenAI's form."""

    type: Literal["function"]
    function: FunctionDescription


class StructuredOutput(TypedDict, total=False):
    """The form that a text is to have: one of these.

    Example:
        schema = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
        result = client.complete("llama", "Who?", structured_output={"json_schema": schema})
        json.loads(result.text)["age"]
    """

    json_schema: Mapping[str, Any] | bool | str
    """JSON of this JSON Schema, which may be given as JSON text."""
    json_object: bool
    """True: any JSON object."""
    regex: str
    """The whole text matches a regular expression, in the syntax of Rust's `regex`."""
    choice: Sequence[str]
    """One of these texts."""
    grammar: str
    """A context-free grammar in EBNF, as Lark or llama.cpp (GBNF) writes it."""
