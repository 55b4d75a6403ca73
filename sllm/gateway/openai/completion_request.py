"""A request for a completion of text, and what it means to `generate`."""

from typing import Any, ClassVar, Final

from sllm.gateway.failures import invalid
from sllm.gateway.fields import Prompts, Refused
from sllm.gateway.openai.sampling import SamplingFields
from sllm.gateway.parameters import OwnFields

MAX_PROMPTS: Final = 128


class CompletionRequest(SamplingFields, OwnFields):
    """The body of POST /v1/completions."""

    REFUSED: ClassVar = {
        "best_of": Refused("ask for n, with logprobs, and choose", (1,)),
        "echo": Refused("put the prompt before the text", (False,)),
        "suffix": Refused("write the prompt as the model fills in", ("",)),
    }
    HARMLESS: ClassVar = {"user": "names a user to whom looks for abuse"}

    prompt: Prompts
    logprobs: int | None = None

    def arguments(self) -> dict[str, Any]:
        """As arguments of `generate`, but for the prompts."""
        found = {**self.sampling_arguments(), **self.own_arguments()}
        if self.logprobs is not None:
            found["logprobs"] = self.logprobs
        return found

    def prompts(self) -> list[dict[str, Any]]:
        """Of each prompt the argument that it is.

        Raises:
            errors.InvalidArgument: There are none, or too many.
        """
        given = self.prompt
        several = isinstance(given, list) and not (given and isinstance(given[0], int))
        prompts: list[Any] = list(given) if several else [given]
        if not 0 < len(prompts) <= MAX_PROMPTS:
            message = f"prompt has {len(prompts)} prompts; 1 to {MAX_PROMPTS} are taken"
            raise invalid(message, "prompt")
        return [_argument(one) for one in prompts]


def _argument(prompt: str | list[int]) -> dict[str, Any]:
    return {"prompt": prompt} if isinstance(prompt, str) else {"prompt_token_ids": prompt}
