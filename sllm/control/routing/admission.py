"""Which requests are worth queueing: what can be said of them before any node is asked."""

from dataclasses import dataclass
from typing import Final

from sllm import bounds, errors
from sllm.control.config import ControlConfig
from sllm.control.types.calls import GenerationAsk, Prompt

MAX_PRIORITY: Final = 100


def check_fields(ask: GenerationAsk) -> None:
    """Refuses a request that no model could serve.

    Raises:
        errors.InvalidPrompt: There is no prompt, or an empty one.
        errors.InvalidSampling: A sampling parameter is out of its bounds.
        errors.InvalidStructuredOutput: The form that the text is to have is none, or too large.
        errors.InvalidArgument: Another field has a value that it may not have.
    """
    if ask.prompt is not Prompt.PRESENT:
        raise errors.InvalidPrompt(f"the request {ask.prompt.value}")
    if ask.conversation:
        ask.conversation.validate()
    bounds.check_output(ask.max_tokens, ask.logprobs, ask.stop, ask.prompt_logprobs)
    ask.sampling.validate(ask.max_tokens)
    if ask.form:
        ask.form.validate()
    check_priority(ask.priority)


def check_priority(priority: int) -> None:
    """Refuses one that is out of its bounds.

    Raises:
        errors.InvalidArgument: Names it.
    """
    if not -MAX_PRIORITY <= priority <= MAX_PRIORITY:
        raise errors.InvalidArgument(
            f"priority must be from {-MAX_PRIORITY} to {MAX_PRIORITY}, not {priority}"
        )


@dataclass(frozen=True, slots=True)
class WaitEstimate:
    """What a request has to expect when it comes."""

    deployment: str
    ahead: int
    """Requests that would be served before it, of those that wait for its deployment."""
    waiting: int
    """Requests that wait for its deployment."""
    waiting_in_all: int
    """Requests that wait for any."""
    to_wait: int
    """How many more would wait with it: one, none, or several that come together."""
    wait: float | None
    """Seconds until it is given to an instance; 0: at once. None: nobody knows."""
    first_token: float
    """Seconds from then to its first token, as far as that is known."""


def check_queue(estimate: WaitEstimate, config: ControlConfig) -> None:
    """Refuses what would have to wait in a queue that is full.

    Raises:
        errors.QueueFull: With the time after which it may be tried again.
    """
    if not estimate.to_wait:
        return
    full, most = "", 0
    if estimate.waiting + estimate.to_wait > config.max_queued_per_deployment:
        most = config.max_queued_per_deployment
        full = f"{estimate.waiting} requests wait for {estimate.deployment}"
    elif estimate.waiting_in_all + estimate.to_wait > config.max_queued:
        most = config.max_queued
        full = f"{estimate.waiting_in_all} requests wait in all"
    if full:
        more = f", {estimate.to_wait} more would, and {most} may" if estimate.to_wait > 1 else ""
        raise errors.QueueFull(
            f"{full}{more or ', as many as may'}; try again later, or raise the limit",
            metadata={"deployment": estimate.deployment},
            retry_after=max(1.0, estimate.wait or 0.0),
        )


def check_images(held: int, more: int, config: ControlConfig) -> None:
    """Refuses requests whose images would have too many bytes, with those of all under way.

    Raises:
        errors.QueueFull: With the numbers.
    """
    if more and held + more > config.max_image_bytes:
        raise errors.QueueFull(
            f"the images of requests under way have {held} bytes, {more} more would come, and "
            f"{config.max_image_bytes} may be held; try again later",
            retry_after=1.0,
        )


def check_deadline(estimate: WaitEstimate, remaining: float | None) -> None:
    """Refuses a request that would not have its first token within `remaining` seconds.

    Raises:
        errors.DeadlineExceeded: With the estimate.
    """
    if estimate.wait is None or remaining is None:
        return
    expected = estimate.wait + estimate.first_token
    if expected > remaining:
        raise errors.DeadlineExceeded(
            f"{estimate.deployment} would give the first token in about {expected:.1f} s, the "
            f"call's deadline is in {remaining:.1f} s; allow more time, or keep an instance ready",
            metadata={
                "estimated_wait_seconds": f"{estimate.wait:.3f}",
                "estimated_first_token_seconds": f"{expected:.3f}",
            },
        )
