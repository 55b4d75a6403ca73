"""Calls: how a caller names one that changes something, and what a generation is asked for."""

from dataclasses import dataclass
from enum import Enum

from sllm.sampling import Sampling


@dataclass(frozen=True, slots=True)
class Call:
    """A mutating call, as its caller named it."""

    request_id: str
    """Chosen by the caller. Empty: the call is not idempotent."""
    fingerprint: str
    """Digest of the call's content without the id."""


class Prompt(Enum):
    """What came as the prompt."""

    MISSING = "has no prompt; set text, token_ids or messages"
    EMPTY = "has an empty prompt"
    PRESENT = ""


@dataclass(frozen=True, slots=True)
class GenerationAsk:
    """The parts of a request that have bounds."""

    prompt: Prompt
    sampling: Sampling
    stop: tuple[str, ...] = ()
    max_tokens: int | None = None
    logprobs: int | None = None
    priority: int = 0
    keep_alive: float | None = None
    """Seconds."""
