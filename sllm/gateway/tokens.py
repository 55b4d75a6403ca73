"""POST /tokenize and /detokenize, as vLLM's server has them."""

from collections.abc import Sequence
from typing import Annotated, Any, Final

from pydantic import AliasChoices, Field

from sllm.gateway.endpoint import Endpoint
from sllm.gateway.exchange import Exchange
from sllm.gateway.failures import encoded
from sllm.gateway.fields import ForeignFields, Listed
from sllm.gateway.openai import conversation


class TokenizeRequest(ForeignFields):
    """The body of POST /tokenize."""

    model: str
    prompt: str | None = None
    messages: Listed[dict[str, Any]] | None = None
    tools: Listed[dict[str, Any]] | None = None
    add_special_tokens: bool = True
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    template_arguments: Annotated[
        dict[str, Any] | None,
        Field(validation_alias=AliasChoices("template_arguments", "chat_template_kwargs")),
    ] = None
    return_token_strs: bool | None = None

    def said(self) -> dict[str, Any]:
        """As arguments of `tokenize`, but for the prompt.

        Raises:
            errors.InvalidRequest: Something of it is not served; it is named.
        """
        messages: Any = None if self.messages is None else conversation.messages(self.messages)
        tools: Any = None if self.tools is None else conversation.tools(self.tools)
        return {
            "messages": messages,
            "tools": tools,
            "template_arguments": self.template_arguments,
            "add_generation_prompt": self.add_generation_prompt,
            "continue_final_message": self.continue_final_message,
            "add_special_tokens": self.add_special_tokens,
        }


class DetokenizeRequest(ForeignFields):
    """The body of POST /detokenize."""

    model: str
    tokens: Listed[int]
    skip_special_tokens: bool = True


async def tokenize(exchange: Exchange) -> None:
    """Makes tokens of a text or a conversation."""
    request, said = await exchange.fields(TokenizeRequest, TokenizeRequest.said)
    planes = exchange.gateway.planes
    tokens = await planes.ask(lambda client: client.tokenize(request.model, request.prompt, **said))
    deployment = await planes.ask(lambda client: client.deployment(request.model))
    found: dict[str, Any] = {
        "count": len(tokens),
        "max_model_len": deployment.model.context_tokens,
        "tokens": tokens,
        "token_strs": None,
    }
    if request.return_token_strs:
        found["token_strs"] = await planes.ask(
            lambda client: client.token_texts(request.model, tokens)
        )
    await exchange.reply(encoded(found))


async def detokenize(exchange: Exchange) -> None:
    """Makes a text of tokens."""
    request, tokens = await exchange.fields(DetokenizeRequest, lambda one: one.tokens)
    text = await exchange.gateway.planes.ask(
        lambda client: client.detokenize(
            request.model, tokens, skip_special_tokens=request.skip_special_tokens
        )
    )
    await exchange.reply(encoded({"prompt": text}))


ENDPOINTS: Final[Sequence[Endpoint]] = (
    Endpoint("POST", "/tokenize", tokenize, "Makes tokens of text.", TokenizeRequest),
    Endpoint("POST", "/detokenize", detokenize, "Makes text of tokens.", DetokenizeRequest),
)
