"""A response as a stream of events: items that begin, grow and end."""

import json
from dataclasses import dataclass, field
from typing import Any, Final

from openai.types import responses as types
from openai.types.responses import ResponseOutputItem
from openai.types.responses.response_content_part_added_event import PartReasoningText
from pydantic import BaseModel

from sllm import Finished, Tokens, ToolCallDelta
from sllm.gateway import sse
from sllm.gateway.openai import response_answers as answers
from sllm.gateway.openai.response_request import ResponseRequest

_HERE: Final = "<here>"
"""Where a text belongs: neither names of deployments nor ids of requests have such letters."""
_NUMBER: Final = 999_999_999
"""Where the number of an event belongs."""


@dataclass(slots=True)
class _Item:
    """The item that grows."""

    kind: str
    """message, reasoning, or call and its number."""
    id: str
    call_id: str = ""
    name: str = ""
    parts: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.parts)

    def made(self, status: str, text: str | None) -> ResponseOutputItem:
        """As it is told of."""
        if self.kind == "message":
            return answers.message(self.id, text, status)
        if self.kind == "reasoning":
            return answers.thought(self.id, text, status)
        return answers.call(self.id, self.call_id, self.name, text or "", status)


class ResponseEvents:
    """Writes the events of one stream."""

    def __init__(self, request: ResponseRequest, request_id: str) -> None:
        self._request = request
        self._request_id = request_id
        self._number = 0
        self._done: list[ResponseOutputItem] = []
        self._item: _Item | None = None
        self._cut: tuple[bytes, bytes, bytes] = (b"", b"", b"")
        """Of a delta of the item: what stands before its text, between that and its number, and
        after that."""

    def begin(self) -> bytes:
        """The beginning."""
        found = answers.response(self._request, self._request_id, [])
        created = types.ResponseCreatedEvent.model_construct(
            response=found, sequence_number=0, type="response.created"
        )
        going = types.ResponseInProgressEvent.model_construct(
            response=found, sequence_number=0, type="response.in_progress"
        )
        return self._event(created) + self._event(going)

    def tokens(self, grown: Tokens) -> bytes:
        """What the response has grown by."""
        found = []
        if grown.reasoning:
            found += [self._switch("reasoning", "rs"), self._delta(grown.reasoning)]
        if grown.text:
            found += [self._switch("message", "msg"), self._delta(grown.text)]
        for call in grown.tool_calls:
            if not (self._request.one_call and call.index):
                found += self._called(call)
        return b"".join(found)

    def finished(self, end: Finished) -> bytes:
        """The end."""
        if self._item is None and not self._done:
            last = self._switch("message", "msg") + self._stop()
        else:
            last = self._stop()
        response = answers.response(
            self._request,
            self._request_id,
            self._done,
            reason=end.reason,
            usage=end.usage,
            receipt=end.receipt,
        )
        kind: Any = types.ResponseCompletedEvent
        if response.status == "incomplete":
            kind = types.ResponseIncompleteEvent
        event = kind.model_construct(
            response=response, sequence_number=0, type=f"response.{response.status}"
        )
        return last + self._event(event)

    def _called(self, call: ToolCallDelta) -> list[bytes]:
        begun = self._switch(f"call {call.index}", "fc", call.id, call.name)
        return [begun, self._delta(call.arguments)] if call.arguments else [begun]

    def _switch(self, kind: str, prefix: str, call_id: str = "", name: str = "") -> bytes:
        if self._item and self._item.kind == kind:
            return b""
        stop = self._stop()
        item_id = answers.item_id(prefix, self._request_id, len(self._done))
        self._item = _Item(kind, item_id, call_id, name)
        added = types.ResponseOutputItemAddedEvent(
            item=self._item.made("in_progress", None),
            output_index=len(self._done),
            sequence_number=0,
            type="response.output_item.added",
        )
        return stop + self._event(added) + self._part("added", "") + self._cut_delta()

    def _stop(self) -> bytes:
        item = self._item
        if item is None:
            return b""
        done = item.made("completed", item.text)
        told = self._text_done(item) + self._part("done", item.text)
        index = len(self._done)
        self._done.append(done)
        self._item = None
        event = types.ResponseOutputItemDoneEvent(
            item=done, output_index=index, sequence_number=0, type="response.output_item.done"
        )
        return told + self._event(event)

    def _part(self, what: str, text: str) -> bytes:
        """The beginning or end of the one part that a message or thought has."""
        item = self._item
        if item is None or item.kind.startswith("call"):
            return b""
        part: Any = PartReasoningText(text=text, type="reasoning_text")
        if item.kind == "message":
            part = answers.text_of(text)
        kinds: dict[str, Any] = {
            "added": types.ResponseContentPartAddedEvent,
            "done": types.ResponseContentPartDoneEvent,
        }
        event = kinds[what].model_construct(
            content_index=0,
            item_id=item.id,
            output_index=len(self._done),
            part=part,
            sequence_number=0,
            type=f"response.content_part.{what}",
        )
        return self._event(event)

    def _text_done(self, item: _Item) -> bytes:
        common: dict[str, Any] = {
            "item_id": item.id,
            "output_index": len(self._done),
            "sequence_number": 0,
        }
        event: BaseModel
        if item.kind == "message":
            event = types.ResponseTextDoneEvent(
                content_index=0,
                logprobs=[],
                text=item.text,
                type="response.output_text.done",
                **common,
            )
        elif item.kind == "reasoning":
            event = types.ResponseReasoningTextDoneEvent(
                content_index=0, text=item.text, type="response.reasoning_text.done", **common
            )
        else:
            event = types.ResponseFunctionCallArgumentsDoneEvent(
                arguments=item.text, type="response.function_call_arguments.done", **common
            )
        return self._event(event)

    def _cut_delta(self) -> bytes:
        """Makes the event that nearly all tokens come in once, and cuts it where they belong."""
        item = self._item
        assert item is not None
        common: dict[str, Any] = {
            "delta": _HERE,
            "item_id": item.id,
            "output_index": len(self._done),
            "sequence_number": _NUMBER,
        }
        event: BaseModel
        if item.kind == "message":
            event = types.ResponseTextDeltaEvent(
                content_index=0, logprobs=[], type="response.output_text.delta", **common
            )
        elif item.kind == "reasoning":
            event = types.ResponseReasoningTextDeltaEvent(
                content_index=0, type="response.reasoning_text.delta", **common
            )
        else:
            event = types.ResponseFunctionCallArgumentsDeltaEvent(
                type="response.function_call_arguments.delta", **common
            )
        before, _, rest = _encoded(event).partition(json.dumps(_HERE).encode())
        between, _, after = rest.partition(str(_NUMBER).encode())
        self._cut = before, between, after
        return b""

    def _delta(self, text: str) -> bytes:
        assert self._item is not None
        self._item.parts.append(text)
        before, between, after = self._cut
        number = str(self._take_number()).encode()
        return b"".join((before, json.dumps(text).encode(), between, number, after))

    def _event(self, event: Any) -> bytes:
        event.sequence_number = self._take_number()
        return _encoded(event)

    def _take_number(self) -> int:
        self._number += 1
        return self._number - 1


def _encoded(event: Any) -> bytes:
    return sse.event(event.type, event.model_dump_json(exclude_unset=True, warnings=False).encode())
