"""A request for a response, and what it means to `generate`."""

from collections.abc import Mapping
from typing import Any, ClassVar, Final, Literal

from sllm.gateway.failures import invalid
from sllm.gateway.fields import Listed, Refused, only
from sllm.gateway.openai import conversation, response_input
from sllm.gateway.openai.chat_request import CACHES
from sllm.gateway.parameters import OwnChatFields

_THOUGHTS: Final = ("summary", "generate_summary")
"""How thoughts are told: here as they are, which says more than any summary."""
_NOT_KEPT: Final = "nothing is kept of a conversation: send all of it"


class ResponseRequest(OwnChatFields):
    """The body of POST /v1/responses."""

    REFUSED: ClassVar = {
        "access_programs": Refused("there are no programs here"),
        "background": Refused("POST /v1/batches does what nobody waits for", (False,)),
        "background_options": Refused("POST /v1/batches does what nobody waits for"),
        "context_management": Refused(_NOT_KEPT, ([],)),
        "conversation": Refused(_NOT_KEPT),
        "image": Refused("models here write text"),
        "include": Refused("answers have all that there is", ([],)),
        "moderation": Refused("nothing is moderated here"),
        "previous_response_id": Refused(_NOT_KEPT),
        "prompt": Refused("no prompts are kept here"),
        "service_tier": Refused("x-sllm-priority says how urgent it is", ("auto", "default")),
        "store": Refused(_NOT_KEPT, (False,)),
        "top_logprobs": Refused("ask for logprobs by /v1/chat/completions", (0,)),
        "truncation": Refused("leave out what is too long", ("disabled",)),
    }
    HARMLESS: ClassVar = {
        "max_tool_calls": "bounds tools that OpenAI runs; there are none here",
        "metadata": "labels of what is stored; nothing is",
        "prompt_cache_key": CACHES,
        "prompt_cache_options": CACHES,
        "prompt_cache_retention": CACHES,
        "safety_identifier": "names a user to whom looks for abuse",
        "stream_options": "streams are not padded",
        "user": "names a user to whom looks for abuse",
    }

    input: str | Listed[dict[str, Any]]
    model: str
    instructions: str | None = None
    max_output_tokens: int | None = None
    parallel_tool_calls: bool | None = None
    reasoning: dict[str, Any] | None = None
    stream: bool | None = None
    temperature: float | None = None
    text: dict[str, Any] | None = None
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any] | None = None
    tools: Listed[dict[str, Any]] | None = None
    top_p: float | None = None

    @property
    def one_call(self) -> bool:
        """Whether more calls than one are left out of an answer."""
        return self.parallel_tool_calls is False

    def arguments(self) -> dict[str, Any]:
        """As arguments of `generate`.

        Raises:
            errors.InvalidRequest: A field has a value that is not served; it is named.
        """
        given = {
            "max_tokens": self.max_output_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
        }
        found: dict[str, Any] = {name: one for name, one in given.items() if one is not None}
        found |= self.own_arguments()
        found["messages"] = response_input.messages(self.instructions, self.input)
        if self.tools:
            tools = [_tool(one, f"tools.{place}") for place, one in enumerate(self.tools)]
            found["tools"] = conversation.tools(tools)
        if self.tool_choice is not None:
            conversation.set_choice(found, _choice(self.tool_choice))
        text = only(self.text or {}, "text", "format", "verbosity")
        conversation.set_form(found, text.get("format"), "text.format")
        if text.get("verbosity") not in (None, "medium"):
            raise invalid("text.verbosity is not served: say it in the prompt", "text.verbosity")
        reasoning = only(self.reasoning or {}, "reasoning", "effort", *_THOUGHTS)
        conversation.set_effort(found, reasoning.get("effort"), "reasoning.effort")
        return found


def _tool(tool: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A function as conversations have it."""
    if tool.get("type") != "function":
        return dict(tool)
    names = ("name", "description", "parameters", "strict")
    only(tool, where, "type", *names)
    function = {name: tool[name] for name in names if tool.get(name) is not None}
    return {"type": "function", "function": function}


def _choice(choice: str | Mapping[str, Any]) -> str | Mapping[str, Any]:
    if isinstance(choice, Mapping) and choice.get("type") == "function":
        only(choice, "tool_choice", "type", "name")
        return {"type": "function", "function": {"name": choice.get("name")}}
    return choice
