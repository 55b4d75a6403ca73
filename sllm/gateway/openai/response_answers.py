"""Responses in the types of OpenAI's own package."""

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from openai.types.responses import (
    Response,
    ResponseFunctionToolCall,
    ResponseOutputItem,
    ResponseOutputMessage,
    ResponseOutputText,
    ResponseReasoningItem,
    ResponseUsage,
)
from openai.types.responses.response import IncompleteDetails
from openai.types.responses.response_reasoning_item import Content
from openai.types.responses.response_usage import InputTokensDetails, OutputTokensDetails

import sllm
from sllm import Choice, Receipt, Usage
from sllm.gateway import receipts
from sllm.gateway.openai.response_request import ResponseRequest

COMPLETED: Final = "completed"


def text_of(text: str) -> ResponseOutputText:
    """A part of a message."""
    return ResponseOutputText(annotations=[], text=text, type="output_text", logprobs=[])


def message(item_id: str, text: str | None, status: Any = COMPLETED) -> ResponseOutputMessage:
    """What the model says; None: nothing yet."""
    content: list[Any] = [] if text is None else [text_of(text)]
    return ResponseOutputMessage(
        id=item_id, content=content, role="assistant", status=status, type="message"
    )


def thought(item_id: str, text: str | None, status: Any = COMPLETED) -> ResponseReasoningItem:
    """What the model thinks; None: nothing yet."""
    content = [] if text is None else [Content(text=text, type="reasoning_text")]
    return ResponseReasoningItem(
        id=item_id, summary=[], type="reasoning", content=content, status=status
    )


def call(
    item_id: str, call_id: str, name: str, arguments: str, status: Any = COMPLETED
) -> ResponseFunctionToolCall:
    """A call of a tool."""
    return ResponseFunctionToolCall(
        id=item_id,
        call_id=call_id,
        name=name,
        arguments=arguments,
        type="function_call",
        status=status,
    )


def item_id(kind: str, request_id: str, index: int) -> str:
    """The id of an item of a response."""
    return f"{kind}_{request_id}_{index}"


def items(request_id: str, choice: Choice, *, one_call: bool) -> list[ResponseOutputItem]:
    """All that a model has thought, said and called."""
    found: list[ResponseOutputItem] = []
    if choice.reasoning:
        found.append(thought(item_id("rs", request_id, 0), choice.reasoning))
    calls = choice.tool_calls[:1] if one_call else choice.tool_calls
    if choice.text or not calls:
        found.append(message(item_id("msg", request_id, len(found)), choice.text))
    for one in calls:
        arguments = str(one["function"]["arguments"])
        name, call_id = one["function"]["name"], one.get("id", "")
        found.append(call(item_id("fc", request_id, len(found)), call_id, name, arguments))
    return found


def response(
    request: ResponseRequest,
    request_id: str,
    output: Sequence[ResponseOutputItem],
    *,
    reason: sllm.FinishReason | None = None,
    usage: Usage | None = None,
    receipt: Receipt | None = None,
) -> Response:
    """A response; without a reason it has not ended."""
    more: dict[str, Any] = {}
    if receipt:
        more["sllm"] = receipts.own(request_id, receipt)
    cut = reason is sllm.FinishReason.LENGTH
    ended = "incomplete" if cut else COMPLETED
    return Response.model_construct(
        id=f"resp_{request_id}",
        created_at=float(int(time.time())),
        error=None,
        incomplete_details=IncompleteDetails(reason="max_output_tokens") if cut else None,
        instructions=request.instructions,
        metadata={},
        model=request.model,
        object="response",
        output=list(output),
        parallel_tool_calls=not request.one_call,
        temperature=request.temperature,
        tool_choice=request.tool_choice or "auto",
        tools=[_described(one) for one in request.tools or ()],
        top_p=request.top_p,
        max_output_tokens=request.max_output_tokens,
        previous_response_id=None,
        reasoning=request.reasoning,
        status="in_progress" if reason is None else ended,
        store=False,
        text=request.text or {"format": {"type": "text"}},
        truncation="disabled",
        usage=_usage(usage) if usage else None,
        **more,
    )


def _described(tool: Mapping[str, Any]) -> dict[str, Any]:
    return {"strict": None, "parameters": None, **tool}


def _usage(usage: Usage) -> ResponseUsage:
    return ResponseUsage(
        input_tokens=usage.prompt_tokens,
        input_tokens_details=InputTokensDetails(
            cached_tokens=usage.cached_prompt_tokens, cache_write_tokens=0
        ),
        output_tokens=usage.completion_tokens,
        output_tokens_details=OutputTokensDetails(reasoning_tokens=0),
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
    )
