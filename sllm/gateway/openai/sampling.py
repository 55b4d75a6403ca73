"""Fields that OpenAI's conversations and completions share."""

from typing import Any, ClassVar

from sllm.gateway.failures import invalid
from sllm.gateway.fields import ForeignFields


class StreamOptions(ForeignFields):
    """How a stream is told."""

    HARMLESS: ClassVar = {"include_obfuscation": "streams are not padded"}

    include_usage: bool | None = None


class SamplingFields(ForeignFields):
    """How an answer is drawn, and where it ends."""

    model: str
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    max_tokens: int | None = None
    n: int | None = None
    presence_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None

    @property
    def tells_usage(self) -> bool:
        """Whether a stream ends with a chunk of usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def sampling_arguments(self) -> dict[str, Any]:
        """As arguments of `generate`."""
        found = {
            "frequency_penalty": self.frequency_penalty,
            "logit_bias": biases(self.logit_bias),
            "max_tokens": self.max_tokens,
            "n": self.n,
            "presence_penalty": self.presence_penalty,
            "seed": self.seed,
            "stop": self.stop,
            "temperature": self.temperature,
            "top_p": self.top_p,
        }
        return {name: value for name, value in found.items() if value is not None}


def biases(given: dict[str, float] | None) -> dict[int, float] | None:
    """Biases by token.

    Raises:
        errors.InvalidArgument: A key is no token id.
    """
    try:
        return None if given is None else {int(token): bias for token, bias in given.items()}
    except ValueError as error:
        raise invalid(f"logit_bias: {error}; its keys are token ids", "logit_bias") from error
