"""Requests for messages, and what they mean to `generate`."""

from collections.abc import Mapping
from typing import Any, ClassVar

from sllm.gateway.anthropic import conversation
from sllm.gateway.failures import invalid
from sllm.gateway.fields import ForeignFields, Listed, Refused, only
from sllm.gateway.parameters import OwnChatFields

_PLACES = "it says where Anthropic's own servers do the work"
_REFUSED = {
    "speed": Refused("x-sllm-priority says how urgent it is", ("standard",)),
    "user_profile_id": Refused("there are no users here"),
    "workspace_id": Refused("there are no workspaces here"),
}
_HARMLESS = {"cache_control": "prefixes are always kept in the KV cache"}


class Conversed(ForeignFields):
    """What a model is told."""

    messages: Listed[dict[str, Any]]
    model: str
    output_config: dict[str, Any] | None = None
    system: str | Listed[dict[str, Any]] | None = None
    thinking: dict[str, Any] | None = None
    tool_choice: dict[str, Any] | None = None
    tools: Listed[dict[str, Any]] | None = None

    def said(self) -> dict[str, Any]:
        """Conversation and tools, as arguments of `generate`.

        Raises:
            errors.InvalidRequest: Something of it is not served; it is named.
        """
        found: dict[str, Any] = {"messages": conversation.messages(self.system, self.messages)}
        if self.tools:
            found["tools"] = conversation.tools(self.tools)
        if variables := self._variables():
            found["template_arguments"] = variables
        return found

    def choice(self) -> dict[str, Any]:
        """Which tools are to be called, the same."""
        if self.tool_choice is None:
            return {}
        choice = conversation.tool_choice(self.tool_choice)
        if self.tools:
            return {"tool_choice": choice}
        if choice not in ("none", "auto"):
            raise invalid("tool_choice asks for a call, and there are no tools", "tool_choice")
        return {}

    def form(self) -> dict[str, Any]:
        """The form of the text, the same.

        Raises:
            errors.InvalidArgument: It is none that is known.
        """
        given = self._output().get("format")
        if given is None:
            return {}
        described = only(given, "output_config.format", "type", "schema")
        if described.get("type") != "json_schema" or not isinstance(described.get("schema"), dict):
            raise invalid(
                "output_config.format is a json_schema with a schema, an object",
                "output_config.format",
            )
        return {"structured_output": {"json_schema": given["schema"]}}

    def _variables(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if self.thinking is not None:
            thinking = only(self.thinking, "thinking", "type", "budget_tokens", "display")
            kind = thinking.get("type")
            if kind not in ("enabled", "adaptive", "disabled"):
                raise invalid(f"thinking has no type {kind!r:.80}", "thinking")
            found["enable_thinking"] = kind != "disabled"
        effort = self._output().get("effort")
        if effort is not None:
            if not isinstance(effort, str):
                raise invalid("output_config.effort must be a text", "output_config.effort")
            found["reasoning_effort"] = effort
        return found

    def _output(self) -> Mapping[str, Any]:
        return only(self.output_config or {}, "output_config", "format", "effort")


class CountRequest(Conversed):
    """The body of POST /v1/messages/count_tokens."""

    REFUSED: ClassVar = _REFUSED
    HARMLESS: ClassVar = _HARMLESS

    def counted(self) -> dict[str, Any]:
        """What is counted; the rest has no tokens, and is looked at all the same.

        Raises:
            errors.InvalidRequest: Something of it is not served; it is named.
        """
        self.choice()
        self.form()
        return self.said()


class MessageRequest(Conversed, OwnChatFields):
    """The body of POST /v1/messages."""

    REFUSED: ClassVar = {
        **_REFUSED,
        "container": Refused("nothing is run here but models"),
        "diagnostics": Refused("receipts tell where the time went"),
        "service_tier": Refused("x-sllm-priority says how urgent it is", ("auto", "standard_only")),
    }
    HARMLESS: ClassVar = {
        **_HARMLESS,
        "inference_geo": _PLACES,
        "metadata": "names a user to whom looks for abuse",
    }

    max_tokens: int
    stop_sequences: Listed[str] | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None

    @property
    def one_call(self) -> bool:
        """Whether more calls than one are left out of an answer."""
        return bool((self.tool_choice or {}).get("disable_parallel_tool_use"))

    def arguments(self) -> dict[str, Any]:
        """As arguments of `generate`.

        Raises:
            errors.InvalidRequest: A field has a value that is not served; it is named.
        """
        own, said, form = self.own_arguments(), self.said(), self.form()
        if form and "structured_output" in own:
            raise invalid("give output_config.format or structured_output, not both")
        variables = {**said.pop("template_arguments", {}), **own.pop("template_arguments", {})}
        found = {**own, **said, **self.choice(), **form, "max_tokens": self.max_tokens}
        given = {
            "stop": self.stop_sequences,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "template_arguments": variables or None,
        }
        return {**found, **{name: value for name, value in given.items() if value is not None}}
