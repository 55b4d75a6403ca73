"""A conversation and how it is to be rendered, with what can be said of it without a model."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

from sllm.chat.images import Image
from sllm.errors import InvalidPrompt

MAX_TOOLS: Final = 256
MAX_JSON: Final = 262_144
"""Letters of all JSON in a conversation: what takes milliseconds to look at."""
RESERVED: Final = frozenset(
    {
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversation",
        "max_length",
        "messages",
        "padding",
        "return_assistant_tokens_mask",
        "return_dict",
        "return_tensors",
        "sanitize_control_tokens",
        "self",
        "tokenize",
        "tokenizer_kwargs",
        "tools",
        "truncation",
    }
)
"""Names that template arguments may not have: what rendering takes otherwise."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool that a model has asked for."""

    call_id: str
    name: str
    arguments: str
    """A JSON object."""


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One message of a conversation."""

    role: str
    content: str = ""
    parts: tuple[str | Image, ...] = ()
    """Texts and images that the content consists of, in place of `content`."""
    tool_calls: tuple[ToolCall, ...] = ()
    """What an assistant has asked for."""
    tool_call_id: str = ""
    """Of the call whose result this is."""
    name: str = ""
    """Of the tool, or of who speaks."""

    @property
    def is_text(self) -> bool:
        """Whether there is something that could be gone on with."""
        return bool(self.content or any(self.parts)) and not (self.tool_calls or self.images)

    @property
    def texts(self) -> tuple[str, ...]:
        """Those of the parts."""
        return tuple(part for part in self.parts if isinstance(part, str))

    @property
    def images(self) -> tuple[Image, ...]:
        """The others."""
        return tuple(part for part in self.parts if isinstance(part, Image))


@dataclass(frozen=True, slots=True)
class Tool:
    """What a model may have called."""

    name: str
    description: str
    parameters: str
    """A JSON Schema. Empty: it takes none."""


class ToolChoiceMode(IntEnum):
    """Whether tools are called; the numbers are those of the protocol."""

    AUTO = 1
    """As the model likes."""
    NONE = 2
    REQUIRED = 3


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """Whether tools are called, and which."""

    mode: ToolChoiceMode = ToolChoiceMode.AUTO
    function: str = ""
    """Name of the one that is called. Empty: as `mode` says."""

    @property
    def is_forced(self) -> bool:
        """Whether the answer has to be a call."""
        return bool(self.function) or self.mode is ToolChoiceMode.REQUIRED


AS_THE_MODEL_LIKES: Final = ToolChoice()


@dataclass(frozen=True, slots=True)
class Conversation:
    """Rendered with a chat template."""

    messages: tuple[ChatMessage, ...]
    tools: tuple[Tool, ...] = ()
    arguments: str = ""
    """A JSON object of variables for the template. Empty: none."""
    add_generation_prompt: bool = True
    """Whether the template writes what an answer begins with."""
    continue_final_message: bool = False
    """Whether the last message is gone on with; nothing is written after it then."""
    tool_choice: ToolChoice = AS_THE_MODEL_LIKES
    template: str = ""
    """In Jinja, in place of the model's own. Empty: that."""

    @property
    def told_tools(self) -> tuple[Tool, ...]:
        """Those that the model is told of."""
        none = self.tool_choice.mode is ToolChoiceMode.NONE and not self.tool_choice.function
        return () if none else self.tools

    @property
    def letters(self) -> int:
        """Of all that was sent."""
        said = (len(one.content) + sum(map(len, one.texts)) for one in self.messages)
        return sum(said) + sum(len(one.description) for one in self.tools) + self._json_letters

    @property
    def images(self) -> tuple[Image, ...]:
        """All that it has, in their order."""
        return tuple(image for one in self.messages for image in one.images)

    @property
    def _json_letters(self) -> int:
        called = (len(call.arguments) for one in self.messages for call in one.tool_calls)
        return sum(called) + sum(len(one.parameters) for one in self.tools) + len(self.arguments)

    def validate(self) -> None:
        """Checks all that does not depend on the model.

        Raises:
            InvalidPrompt: Says what is wrong, and where.
        """
        if len(self.tools) > MAX_TOOLS:
            raise InvalidPrompt(f"there are {len(self.tools)} tools, and may be {MAX_TOOLS}")
        if self._json_letters > MAX_JSON:
            raise InvalidPrompt(
                f"tools, their calls and template_arguments have {self._json_letters} letters of "
                f"JSON, and may have {MAX_JSON}"
            )
        if self.continue_final_message and self.add_generation_prompt:
            raise InvalidPrompt(
                "continue_final_message goes on with the last message, and add_generation_prompt "
                "begins another; set one of them"
            )
        if self.continue_final_message and not (self.messages and self.messages[-1].is_text):
            raise InvalidPrompt("continue_final_message needs a last message of text")
        check_choice(self.tool_choice, self.tools)
        if reserved := RESERVED.intersection(self.variables()):
            raise InvalidPrompt(f"template_arguments cannot set {', '.join(sorted(reserved))}")
        for number, message in enumerate(self.messages):
            _check_message(message, f"messages[{number}]")
        for number, tool in enumerate(self.tools):
            _check_tool(tool, f"tools[{number}]")

    def variables(self) -> dict[str, Any]:
        """Of the template, beside messages and tools.

        Raises:
            InvalidPrompt: `arguments` is no JSON object.
        """
        return json_object(self.arguments, "template_arguments")


def check_choice(choice: ToolChoice, tools: Sequence[Tool]) -> None:
    """Checks that there is what has to be called.

    Raises:
        InvalidPrompt: There is no tool at all, none of the name, or two.
    """
    if choice.is_forced and not tools:
        raise InvalidPrompt("tool_choice has a tool called, and there are no tools")
    names = [tool.name for tool in tools]
    if choice.function and choice.function not in names:
        raise InvalidPrompt(
            f"tool_choice names {choice.function!r:.80}, which is none of the tools"
        )
    if choice.is_forced and len(set(names)) < len(names):
        raise InvalidPrompt("tool_choice has a tool called, and two tools have the same name")


def json_object(text: str, what: str) -> dict[str, Any]:
    """A JSON object, empty if the text is.

    Raises:
        InvalidPrompt: It is none; names `what` it was to be.
    """
    try:
        value = json.loads(text) if text else {}
    except (ValueError, RecursionError) as error:
        raise InvalidPrompt(f"{what} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise InvalidPrompt(f"{what} must be a JSON object, not {text[:80]!r}")
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except (UnicodeEncodeError, RecursionError) as error:
        raise InvalidPrompt(f"{what} has half a character: {error}") from error
    return value


def _check_message(message: ChatMessage, where: str) -> None:
    if message.content and message.parts:
        raise InvalidPrompt(f"{where} has both content and parts; set one of them")
    for number, call in enumerate(message.tool_calls):
        _check_name(call.name, f"{where}.tool_calls[{number}].name")
        json_object(call.arguments, f"{where}.tool_calls[{number}].arguments")


def _check_tool(tool: Tool, where: str) -> None:
    _check_name(tool.name, f"{where}.name")
    json_object(tool.parameters, f"{where}.parameters")


def _check_name(name: str, where: str) -> None:
    if not name.strip():
        raise InvalidPrompt(f"{where} is empty")
