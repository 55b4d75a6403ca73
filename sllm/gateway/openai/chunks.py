"""Chunks of a streamed chat completion.

A model of the `openai` package takes longer to make than a token takes to relay. So the chunk that
nearly all tokens come in is made once, and cut where its text belongs.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from openai.types.chat import ChatCompletionChunk
from openai.types.chat.chat_completion_chunk import (
    Choice,
    ChoiceDelta,
    ChoiceDeltaToolCall,
    ChoiceDeltaToolCallFunction,
    ChoiceLogprobs,
)

from sllm import ChoiceFinished, Finished, Tokens, ToolCallDelta
from sllm.gateway import receipts, sse
from sllm.gateway.openai import answers
from sllm.gateway.openai.answers import Head

HERE: Final = "<here>"
"""Where a text belongs: neither names of deployments nor ids of requests have such letters."""


def cut(chunk: bytes) -> tuple[bytes, bytes]:
    """What stands before a chunk's text, and after it."""
    before, _, after = chunk.partition(json.dumps(HERE).encode())
    return before, after


class ChatChunks:
    """Writes the chunks of one stream."""

    def __init__(self, head: Head, *, tells_usage: bool, one_call: bool) -> None:
        """`one_call`: whether calls of tools after the first are left out."""
        self._head = head
        self.tells_usage = tells_usage
        self._one_call = one_call
        self._cut: dict[int, tuple[bytes, bytes]] = {}
        """Of each choice that has begun: what stands before its text, and after it."""

    def tokens(self, index: int, grown: Tokens, logprobs: ChoiceLogprobs | None = None) -> bytes:
        """What a choice has grown by; nothing if nothing can be seen of it."""
        begins = b"" if index in self._cut else self._begin(index)
        calls = self._calls(grown.tool_calls)
        if not (calls or grown.reasoning or logprobs):
            return begins + (self._text(index, grown.text) if grown.text else b"")
        delta = ChoiceDelta(tool_calls=calls) if calls else ChoiceDelta()
        if grown.text:
            delta.content = grown.text
        if grown.reasoning:
            answers.set_reasoning(delta, grown.reasoning)
        return begins + self._chunk(index, delta, logprobs=logprobs)

    def finished(
        self, index: int, end: Finished | ChoiceFinished, *, told: Mapping[str, Any]
    ) -> bytes:
        """The end of a choice; `told` is sllm's part of it."""
        begins = b"" if index in self._cut else self._begin(index)
        reason = answers.finish_reason(end.reason)
        return begins + self._chunk(index, ChoiceDelta(), reason=reason, sllm=told)

    def usage(self, ends: Sequence[Finished], told: Mapping[str, Any]) -> bytes:
        """The last chunk, where usage is asked for."""
        chunk = self._made([], usage=answers.usage([one.usage for one in ends]), sllm=told)
        return sse.data(answers.encoded(chunk))

    def _begin(self, index: int) -> bytes:
        self._cut[index] = cut(self._chunk(index, ChoiceDelta(content=HERE)))
        return self._chunk(index, ChoiceDelta(role="assistant", content=""))

    def _text(self, index: int, text: str) -> bytes:
        before, after = self._cut[index]
        return before + json.dumps(text).encode() + after

    def _calls(self, deltas: Sequence[ToolCallDelta]) -> list[ChoiceDeltaToolCall]:
        return [_call(one) for one in deltas if not (self._one_call and one.index)]

    def _chunk(
        self,
        index: int,
        delta: ChoiceDelta,
        *,
        reason: answers.FinishReason | None = None,
        logprobs: ChoiceLogprobs | None = None,
        sllm: Mapping[str, Any] | None = None,
    ) -> bytes:
        choice = Choice(index=index, delta=delta, finish_reason=reason, logprobs=logprobs)
        more: dict[str, Any] = {"usage": None} if self.tells_usage else {}
        if sllm:
            more["sllm"] = sllm
        return sse.data(answers.encoded(self._made([choice], **more)))

    def _made(self, choices: list[Choice], **more: Any) -> ChatCompletionChunk:
        head = self._head
        return ChatCompletionChunk(
            id=head.id,
            choices=choices,
            created=head.created,
            model=head.model,
            object="chat.completion.chunk",
            **more,
        )


def _call(delta: ToolCallDelta) -> ChoiceDeltaToolCall:
    function = ChoiceDeltaToolCallFunction(arguments=delta.arguments)
    if not delta.id:
        return ChoiceDeltaToolCall(index=delta.index, function=function)
    function.name = delta.name
    return ChoiceDeltaToolCall(index=delta.index, id=delta.id, function=function, type="function")


def last(ends: Sequence[Finished], request_id: str) -> dict[str, Any]:
    """Sllm's part of the last chunk: where the time to the first token of all went."""
    first = min(ends, key=lambda one: one.receipt.time_to_first_token)
    return receipts.own(request_id, first.receipt)
