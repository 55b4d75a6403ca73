"""What OpenAI's answers have in common, in the types of its own package."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from openai.types import CompletionUsage
from openai.types.completion_usage import PromptTokensDetails
from pydantic import BaseModel

import sllm
from sllm import Usage

FinishReason = Literal["stop", "length", "tool_calls"]

_REASONS: Final[dict[sllm.FinishReason, FinishReason]] = {
    sllm.FinishReason.LENGTH: "length",
    sllm.FinishReason.TOOL_CALLS: "tool_calls",
}


@dataclass(frozen=True, slots=True)
class Head:
    """What stands in every part of an answer."""

    id: str
    model: str
    created: int
    """Seconds since the epoch."""


def head(prefix: str, request_id: str, model: str) -> Head:
    """Of an answer that begins now."""
    return Head(f"{prefix}-{request_id}", model, int(time.time()))


def finish_reason(reason: sllm.FinishReason) -> FinishReason:
    """Why a choice has ended."""
    return _REASONS.get(reason, "stop")


def usage(parts: Sequence[Usage]) -> CompletionUsage:
    """Tokens of all prompts and answers."""
    prompt = sum(one.prompt_tokens for one in parts)
    completion = sum(one.completion_tokens for one in parts)
    cached = sum(one.cached_prompt_tokens for one in parts)
    return CompletionUsage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=prompt + completion,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=cached),
    )


def set_reasoning(part: Any, text: str) -> None:
    """Thoughts, by both of the names that clients look for: OpenAI has none."""
    part.reasoning = part.reasoning_content = text


def encoded(answer: BaseModel) -> bytes:
    """JSON of what has been set; a request's own words go back as they came."""
    return answer.model_dump_json(exclude_unset=True, warnings=False).encode()
