"""Calls: how a caller names one that changes something, and what a generation is asked for."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final, Generic, TypeVar

from sllm import errors
from sllm.chat.conversation import Conversation
from sllm.sampling import Sampling
from sllm.structured_output.form import Form

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class AnswerFormat(Generic[Answer]):
    """How the answer to a call is kept, for the case that its caller repeats the call."""

    encode: Callable[[Answer], bytes]
    decode: Callable[[bytes], Answer]


@dataclass(frozen=True, slots=True)
class Call(Generic[Answer]):
    """A mutating call, as its caller named it. Repeated, it gets its first answer again."""

    request_id: str
    """Chosen by the caller. Empty: the call is not idempotent."""
    fingerprint: str
    """Digest of the call's content without the id."""
    answers: AnswerFormat[Answer]

    def check_repeats(self, fingerprint: str) -> None:
        """Refuses this call unless it repeats the one of its id, which had `fingerprint`.

        Raises:
            errors.RequestIdInUse: That one had other content.
        """
        if self.fingerprint != fingerprint:
            raise errors.RequestIdInUse(
                f"request id {self.request_id!r} was used for another call; choose a new one"
            )


class Done(Enum):
    """The answer to a call that has nothing to tell but that it is done."""

    DONE = b""


DONE_ALONE: Final[AnswerFormat[Done]] = AnswerFormat(lambda done: done.value, Done)
UNASKED: Final = Call("", "", DONE_ALONE)
"""What the control plane changes by itself: there is no caller who could repeat it."""


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
    form: Form | None = None
    """That the text is to have."""
    conversation: Conversation | None = None
    """If the prompt is one."""
    stop: tuple[str, ...] = ()
    max_tokens: int | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    priority: int = 0
    keep_alive: float | None = None
    """Seconds."""
    linger: float = 0.0
    """Seconds."""
