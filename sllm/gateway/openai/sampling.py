"""Fields that OpenAI's conversations and completions share."""

from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator

from sllm.gateway.failures import invalid
from sllm.gateway.fields import ForeignFields, Listed


def _first_wrong(given: Any) -> Any:
    """Of many wrong biases one is enough to be told of."""
    if isinstance(given, dict):
        for name, bias in given.items():
            if isinstance(bias, bool) or not isinstance(bias, int | float):
                return {name: bias}
    return given


class StreamOptions(ForeignFields):
    """How a stream is told."""

    HARMLESS: ClassVar = {"include_obfuscation": "streams are not padded"}

    include_usage: bool | None = None


class SamplingFields(ForeignFields):
    """How an answer is drawn, and where it ends."""

    model: str
    frequency_penalty: float | None = None
    logit_bias: Annotated[dict[str, float] | None, BeforeValidator(_first_wrong)] = None
    max_tokens: int | None = None
    n: int | None = None
    presence_penalty: float | None = None
    seed: int | None = None
    stop: str | Listed[str] | None = None
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
            "seed": None if self.seed is None else self.seed % 2**63,
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
