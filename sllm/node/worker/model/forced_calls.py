"""Answers that have to be calls of tools: JSON of a form that is known, taken apart as it comes."""

import json
import re
from typing import Final

from sllm.chat.calls import call_id
from sllm.chat.conversation import ToolChoice
from sllm.node.worker.model.parsing import Parsed, ToolCallDelta

_HEAD: Final = re.compile(
    r"""\s*(?:\[|\}\s*,)\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"parameters"\s*:\s*(?=\{)"""
)
"""What is before the arguments of a call, as `call_schema` has it."""


class ForcedCalls:
    """See `OutputParser`. Each letter of arguments is looked at once."""

    def __init__(self, choice: ToolChoice, request_id: str, *, skips_special_tokens: bool) -> None:
        """Begins an answer.

        Args:
            choice: forces it.
            request_id: names its calls.
            skips_special_tokens: as the caller wants its text.
        """
        self.skips_special_tokens = skips_special_tokens
        self._function = choice.function
        self._request_id = request_id
        self._index = -1
        self._head = ""
        """What has come since the last call's arguments."""
        self._arguments: _Object | None = None
        """Of the call that is under way."""

    def push(self, text: str, token_id: int, *, finished: bool) -> Parsed:
        """See `OutputParser.push`."""
        return Parsed(tool_calls=tuple(self._named(text) if self._function else self._calls(text)))

    def _named(self, text: str) -> list[ToolCallDelta]:
        """The whole answer is the arguments of one call."""
        if self._index < 0:
            return [self._begin(self._function, text)]
        return [ToolCallDelta(0, arguments=text)] if text else []

    def _calls(self, text: str) -> list[ToolCallDelta]:
        deltas = []
        while text:
            if self._arguments:
                size = self._arguments.take(text)
                deltas.append(ToolCallDelta(self._index, arguments=text[:size]))
                text = text[size:]
                if self._arguments.is_whole:
                    self._arguments = None
            elif head := _HEAD.match(self._head + text):
                deltas.append(self._begin(json.loads(head[1]), ""))
                self._arguments, text, self._head = _Object(), head.string[head.end() :], ""
            else:
                self._head, text = self._head + text, ""
        return deltas

    def _begin(self, name: str, arguments: str) -> ToolCallDelta:
        self._index += 1
        return ToolCallDelta(self._index, call_id(self._request_id, self._index), name, arguments)


class _Object:
    """A JSON object that comes in pieces: where it ends."""

    def __init__(self) -> None:
        self.is_whole = False
        self._depth = 0
        self._in_string = self._escaped = False

    def take(self, text: str) -> int:
        """How many of the letters belong to it."""
        for number, letter in enumerate(text, 1):
            if self._escaped:
                self._escaped = False
            elif self._in_string:
                self._escaped, self._in_string = letter == "\\", letter != '"'
            elif letter == '"':
                self._in_string = True
            else:
                self._depth += (letter in "{[") - (letter in "}]")
                if not self._depth:
                    self.is_whole = True
                    return number
        return len(text)
