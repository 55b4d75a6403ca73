"""A request for a chat completion, and what it means to `generate`."""

from typing import Any, ClassVar, Literal

from sllm.gateway.failures import invalid
from sllm.gateway.fields import Listed, Refused
from sllm.gateway.openai import conversation
from sllm.gateway.openai.sampling import SamplingFields
from sllm.gateway.parameters import OwnChatFields

CACHES = "prefixes are always kept in the KV cache, and nothing else is kept of a prompt"


class ChatRequest(SamplingFields, OwnChatFields):
    """The body of POST /v1/chat/completions."""

    REFUSED: ClassVar = {
        "audio": Refused("models here write text"),
        "function_call": Refused("it is tool_choice today", ("auto", "none")),
        "functions": Refused("they are tools today", ([],)),
        "modalities": Refused("models here write text", (["text"],)),
        "moderation": Refused("nothing is moderated here"),
        "service_tier": Refused("x-sllm-priority says how urgent it is", ("auto", "default")),
        "store": Refused("nothing is kept of a conversation", (False,)),
        "verbosity": Refused("say it in the prompt", ("medium",)),
        "web_search_options": Refused("models here search nothing"),
    }
    HARMLESS: ClassVar = {
        "metadata": "labels of what is stored; nothing is",
        "prediction": "makes answers faster elsewhere, and never others",
        "prompt_cache_key": CACHES,
        "prompt_cache_options": CACHES,
        "prompt_cache_retention": CACHES,
        "safety_identifier": "names a user to whom looks for abuse",
        "user": "the same",
    }

    messages: Listed[dict[str, Any]]
    logprobs: bool | None = None
    max_completion_tokens: int | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    response_format: dict[str, Any] | None = None
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any] | None = None
    tools: Listed[dict[str, Any]] | None = None
    top_logprobs: int | None = None

    @property
    def one_call(self) -> bool:
        """Whether more calls than one are left out of an answer."""
        return self.parallel_tool_calls is False

    def arguments(self) -> dict[str, Any]:
        """As arguments of `generate`.

        Raises:
            errors.InvalidArgument: A field has a value that cannot be served; it is named.
        """
        found = {**self.sampling_arguments(), **self.own_arguments()}
        found["messages"] = conversation.messages(self.messages)
        if self.tools:
            found["tools"] = conversation.tools(self.tools)
        if self.tool_choice is not None:
            conversation.set_choice(found, self.tool_choice)
        self._bound(found)
        self._ask_logprobs(found)
        conversation.set_form(found, self.response_format, "response_format")
        conversation.set_effort(found, self.reasoning_effort, "reasoning_effort")
        return found

    def _bound(self, found: dict[str, Any]) -> None:
        most = self.max_completion_tokens
        if most is None:
            return
        if self.max_tokens not in (None, most):
            raise invalid("max_completion_tokens and max_tokens differ", "max_tokens")
        found["max_tokens"] = most

    def _ask_logprobs(self, found: dict[str, Any]) -> None:
        if self.logprobs:
            found["logprobs"] = self.top_logprobs or 0
        elif self.top_logprobs is not None:
            raise invalid("top_logprobs is given, and logprobs is not true", "top_logprobs")
