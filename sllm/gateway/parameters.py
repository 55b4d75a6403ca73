"""Parameters of generations that are sllm's own: beside the other protocol's, in every request."""

from typing import Annotated, Any, Final

from pydantic import AfterValidator, AliasChoices, Field

from sllm.gateway.fields import ForeignFields, Listed

_NAMES: Final = (
    *("top_k", "min_p", "repetition_penalty", "min_tokens", "bad_words", "allowed_token_ids"),
    *("structured_output", "stop_token_ids", "include_stop", "skip_special_tokens"),
    *("ignore_eos", "failover"),
)


def _some(given: list[int] | None) -> list[int] | None:
    if given == []:
        raise ValueError("none would be allowed")
    return given


class OwnFields(ForeignFields):
    """What `extra_body` may have; see docs/requests.md."""

    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int | None = None
    bad_words: Listed[str] | None = None
    allowed_token_ids: Annotated[Listed[int] | None, AfterValidator(_some)] = None
    structured_output: dict[str, Any] | None = None
    stop_token_ids: Listed[int] | None = None
    include_stop: bool | None = None
    skip_special_tokens: bool | None = None
    ignore_eos: bool | None = None
    failover: bool | None = None

    def own_arguments(self) -> dict[str, Any]:
        """Those that are given, as arguments of `generate`."""
        found = {name: getattr(self, name) for name in _NAMES}
        return {name: value for name, value in found.items() if value is not None}


class OwnChatFields(OwnFields):
    """The same for a conversation."""

    template_arguments: Annotated[
        dict[str, Any] | None,
        Field(validation_alias=AliasChoices("template_arguments", "chat_template_kwargs")),
    ] = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None

    def own_arguments(self) -> dict[str, Any]:
        """Those that are given, as arguments of `generate`."""
        found = super().own_arguments()
        for name in ("template_arguments", "add_generation_prompt", "continue_final_message"):
            if (value := getattr(self, name)) is not None:
                found[name] = value
        return found
