"""Which requests are worth queueing: what can be said of them before any node is asked."""

from dataclasses import dataclass
from enum import Enum
from typing import Final

from sllm import errors
from sllm.sampling import Sampling

MAX_STOPS: Final = 16
MAX_LOGPROBS: Final = 20


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


def check(ask: GenerationAsk) -> None:
    """Refuses a request that no model could serve.

    Raises:
        errors.InvalidPrompt: There is no prompt, or an empty one.
        errors.InvalidSampling: A sampling parameter is out of its bounds.
        errors.InvalidArgument: Another field has a value that it may not have.
    """
    if ask.prompt is not Prompt.PRESENT:
        raise errors.InvalidPrompt(f"the request {ask.prompt.value}")
    ask.sampling.validate()
    if ask.max_tokens is not None and ask.max_tokens < 1:
        raise errors.InvalidArgument(f"max_tokens must be at least 1, not {ask.max_tokens}")
    if ask.logprobs is not None and not 0 <= ask.logprobs <= MAX_LOGPROBS:
        raise errors.InvalidArgument(f"logprobs must be 0-{MAX_LOGPROBS}, not {ask.logprobs}")
    if len(ask.stop) > MAX_STOPS or not all(ask.stop):
        raise errors.InvalidArgument(
            f"stop must be at most {MAX_STOPS} strings, none of them empty"
        )
