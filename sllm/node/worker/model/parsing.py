"""What a model says, thinks and calls, told apart in its text as it comes."""

from dataclasses import dataclass
from typing import Protocol

from sllm.chat.conversation import AS_THE_MODEL_LIKES, Conversation, Tool, ToolChoice


@dataclass(frozen=True, slots=True)
class Parsing:
    """What there is to know of a conversation for taking its answer apart."""

    tools: tuple[Tool, ...] = ()
    choice: ToolChoice = AS_THE_MODEL_LIKES
    arguments: str = ""
    """A JSON object: the variables that its chat template had. Empty: none."""

    def validate(self) -> None:
        """Checks what a conversation would be checked for.

        Raises:
            InvalidPrompt: Says what is wrong, and where.
        """
        Conversation((), self.tools, self.arguments, tool_choice=self.choice).validate()


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """What a call of a tool has grown by."""

    index: int
    """Which of the calls of a generation."""
    call_id: str = ""
    """With the first delta of a call."""
    name: str = ""
    """Of the tool; the same."""
    arguments: str = ""

    def joined(self, later: "ToolCallDelta") -> "ToolCallDelta":
        """This delta and one of the same call that follows it."""
        return ToolCallDelta(
            self.index,
            self.call_id or later.call_id,
            self.name or later.name,
            self.arguments + later.arguments,
        )


@dataclass(frozen=True, slots=True)
class Parsed:
    """What an answer has grown by."""

    text: str = ""
    """That it says."""
    reasoning: str = ""
    """That it thinks."""
    tool_calls: tuple[ToolCallDelta, ...] = ()


class OutputParser(Protocol):
    """Takes one answer apart. All that it gives follows from the tokens, one by one."""

    @property
    def skips_special_tokens(self) -> bool:
        """Whether it wants the text without special tokens."""
        ...

    def push(self, text: str, token_id: int, *, finished: bool) -> Parsed:
        """Takes the next token, and what the text has grown by with it."""
        ...


class Parsers(Protocol):
    """Makes the parsers of one model's answers."""

    def begin(
        self,
        parsing: Parsing,
        prompt: tuple[int, ...],
        request_id: str,
        *,
        skips_special_tokens: bool,
    ) -> OutputParser:
        """A parser of a new answer, which is free to be one.

        Args:
            parsing: what there is to know of the conversation; it has been checked.
            prompt: token ids.
            request_id: names its calls.
            skips_special_tokens: as the caller wants its text. A parser may want them all the same.

        Raises:
            InvalidPrompt: A tool is none that the parser takes.
        """
        ...


def joined(
    earlier: tuple[ToolCallDelta, ...], later: tuple[ToolCallDelta, ...]
) -> tuple[ToolCallDelta, ...]:
    """Deltas that follow one another; those of one call become one."""
    together = list(earlier)
    for delta in later:
        if together and together[-1].index == delta.index:
            together[-1] = together[-1].joined(delta)
        else:
            together.append(delta)
    return tuple(together)
