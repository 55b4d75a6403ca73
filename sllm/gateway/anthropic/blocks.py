"""A message as a stream of events: blocks that begin, grow and end."""

import json
from collections.abc import Mapping
from typing import Any

from anthropic.types import (
    InputJSONDelta,
    Message,
    MessageDeltaUsage,
    RawContentBlockDelta,
    RawContentBlockDeltaEvent,
    RawContentBlockStartEvent,
    RawContentBlockStopEvent,
    RawMessageDeltaEvent,
    RawMessageStartEvent,
    RawMessageStopEvent,
    TextBlock,
    TextDelta,
    ThinkingBlock,
    ThinkingDelta,
    ToolUseBlock,
)
from anthropic.types.raw_message_delta_event import Delta
from pydantic import BaseModel

from sllm import Finished, Tokens, ToolCallDelta
from sllm.gateway import sse
from sllm.gateway.anthropic import answers

_HERE = "<here>"
"""Where a text belongs: neither names of deployments nor ids of requests have such letters."""


class Blocks:
    """Writes the events of one stream."""

    def __init__(self, message: Message, *, one_call: bool) -> None:
        """`message`: as it is when it begins. `one_call`: whether later calls are left out."""
        self._message = message
        self._one_call = one_call
        self._begun = False
        self._open = ""
        """Kind of the block that grows; of a call its number is in it."""
        self._index = -1
        self._text: tuple[bytes, bytes] = (b"", b"")
        """What stands before and after the text that the open block grows by."""

    def tokens(self, grown: Tokens) -> bytes:
        """What the message has grown by."""
        parts = [self.begin()]
        if grown.reasoning:
            block = ThinkingBlock(type="thinking", thinking="", signature="")
            parts.append(self._switch("thinking", block))
            delta = ThinkingDelta(type="thinking_delta", thinking=grown.reasoning)
            parts.append(self._delta(delta))
        if grown.text:
            parts += self._said(grown.text)
        for call in grown.tool_calls:
            if not (self._one_call and call.index):
                parts += self._called(call)
        return b"".join(parts)

    def begin(self) -> bytes:
        """The beginning, unless that is said."""
        if self._begun:
            return b""
        self._begun = True
        return _event(RawMessageStartEvent(type="message_start", message=self._message))

    def finished(self, end: Finished, told: Mapping[str, Any]) -> bytes:
        """The end; `told` is sllm's part of it."""
        usage = answers.usage(end.usage)
        more: Any = {"sllm": told}
        delta = RawMessageDeltaEvent(
            type="message_delta",
            delta=Delta(
                stop_reason=answers.stop_reason(end.reason, end.stop), stop_sequence=end.stop
            ),
            usage=MessageDeltaUsage(
                input_tokens=usage.input_tokens,
                cache_read_input_tokens=usage.cache_read_input_tokens,
                output_tokens=usage.output_tokens,
            ),
            **more,
        )
        stop = _event(RawMessageStopEvent(type="message_stop"))
        return self.begin() + self._stop() + _event(delta) + stop

    def _said(self, text: str) -> list[bytes]:
        opened = self._switch("text", TextBlock(type="text", text=""))
        if opened:
            event = self._delta(TextDelta(type="text_delta", text=_HERE))
            before, _, after = event.partition(json.dumps(_HERE).encode())
            self._text = before, after
        before, after = self._text
        return [opened, before, json.dumps(text).encode(), after]

    def _called(self, call: ToolCallDelta) -> list[bytes]:
        block = ToolUseBlock(type="tool_use", id=call.id, name=call.name, input={})
        parts = [self._switch(f"call {call.index}", block)]
        if call.arguments:
            delta = InputJSONDelta(type="input_json_delta", partial_json=call.arguments)
            parts.append(self._delta(delta))
        return parts

    def _switch(self, kind: str, block: TextBlock | ThinkingBlock | ToolUseBlock) -> bytes:
        if kind == self._open:
            return b""
        stop = self._stop()
        self._open = kind
        self._index += 1
        start = RawContentBlockStartEvent(
            type="content_block_start", index=self._index, content_block=block
        )
        return stop + _event(start)

    def _stop(self) -> bytes:
        if not self._open:
            return b""
        self._open = ""
        return _event(RawContentBlockStopEvent(type="content_block_stop", index=self._index))

    def _delta(self, delta: RawContentBlockDelta) -> bytes:
        return _event(
            RawContentBlockDeltaEvent(type="content_block_delta", index=self._index, delta=delta)
        )


def _event(event: BaseModel) -> bytes:
    payload = event.model_dump_json(exclude_unset=True).encode()
    return sse.event(str(vars(event)["type"]), payload)
