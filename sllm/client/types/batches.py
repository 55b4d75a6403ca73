"""Batches: many generations that nobody waits for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Required, TypedDict

from sllm.client.types.chats import (
    ChatMessage,
    NamedTool,
    StructuredOutput,
    Tool,
    ToolChoice,
)
from sllm.client.types.embeddings import Embeddings
from sllm.client.types.enums import BatchState
from sllm.client.types.events import Result
from sllm.errors import SllmError


class BatchRequest(TypedDict, total=False):
    """One request of a batch: arguments of `generate`, or of `embed`, by name.

    Example:
        {"deployment": "llama", "prompt": "Once upon a time", "max_tokens": 32, "request_id": "a"}
        {"deployment": "bge", "inputs": ["Once upon a time", "The end"]}
    """

    deployment: Required[str]
    prompt: str
    prompt_token_ids: Sequence[int]
    messages: Sequence[ChatMessage]
    tools: Sequence[Tool]
    tool_choice: ToolChoice | NamedTool
    template_arguments: Mapping[str, Any]
    add_generation_prompt: bool
    continue_final_message: bool
    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    seed: int
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float]
    min_tokens: int
    bad_words: Sequence[str]
    allowed_token_ids: Sequence[int]
    structured_output: StructuredOutput
    stop: str | Sequence[str]
    stop_token_ids: Sequence[int]
    include_stop: bool
    skip_special_tokens: bool
    logprobs: int
    prompt_logprobs: int
    n: int
    ignore_eos: bool
    failover: bool
    inputs: str | Sequence[str] | Sequence[Sequence[int]]
    """Texts to embed: of the others then `normalize`, `dimensions` and `truncate` alone."""
    normalize: bool
    dimensions: int
    truncate: bool
    request_id: str
    """Names its result. Default: its number in the batch, from 0."""


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch; times are seconds since the epoch."""

    batch_id: str
    state: BatchState
    requests: int
    """In all."""
    finished: int
    """Those of which there is an answer."""
    failed: int
    created_at: float
    expires_at: float
    """When those fail that have not ended."""
    ended_at: float | None
    """None: it has not ended."""
    kept_until: float | None
    """When it is forgotten. None: it has not ended."""


@dataclass(frozen=True, slots=True)
class BatchResult:
    """What has come of one request of a batch."""

    number: int
    """From 0, in the order in which the requests have ended."""
    request_id: str
    result: Result | None
    """None: it has failed, or was for vectors."""
    error: SllmError | None
    """Why it has failed. None: it has not."""
    embeddings: Embeddings | None = None
    """Of a request that was for vectors."""
