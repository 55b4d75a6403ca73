"""The client as those use it who write prompts: what a deployment's model makes of text."""

from collections.abc import Mapping, Sequence
from typing import Any

from serverlessllm.v1 import model_service_pb2 as pb

from sllm.client.base import BaseClient
from sllm.client.types.chats import ChatMessage, Tool
from sllm.client.types.models import ModelDetails, TokenCount
from sllm.client.wire import chats, models
from sllm.client.wire.chats import Chat
from sllm.client.wire.requests import fitting


class TextClient(BaseClient):
    """The part of a client that needs a model's small files alone: no instance is started."""

    async def model(self, deployment: str) -> ModelDetails:
        """What there is to know of a deployment's model: context, vocabulary, template, limits.

        Raises:
            errors.DeploymentNotFound: There is none of this name.
        """
        with fitting():
            request = pb.GetModelRequest(deployment=deployment)
        answer = await self._connection.call(self._connection.models.GetModel, request)
        return models.details(answer)

    async def tokenize(
        self,
        deployment: str,
        prompt: str | None = None,
        *,
        messages: Sequence[ChatMessage] | None = None,
        tools: Sequence[Tool] | None = None,
        template_arguments: Mapping[str, Any] | None = None,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool = False,
        add_special_tokens: bool = True,
    ) -> list[int]:
        """The token ids that `generate` would make of the same prompt.

        Args:
            deployment: name of the deployment.
            prompt: text; or
            messages: a conversation, rendered with the model's chat template.
            tools: as in `generate`.
            template_arguments: the same.
            add_generation_prompt: the same.
            continue_final_message: the same.
            add_special_tokens: whether a text gets those that the tokenizer adds.

        Raises:
            errors.InvalidPrompt: Not exactly one of the prompts was given, the text is too long,
                or the template refuses the messages.
            errors.NoChatTemplate: The model takes no conversations.
        """
        chat = Chat(tools, template_arguments, add_generation_prompt, continue_final_message)
        request = models.tokenize(
            deployment, prompt, messages, chat, add_special_tokens=add_special_tokens
        )
        answer = await self._connection.call(self._connection.models.Tokenize, request)
        return list(answer.token_ids)

    async def count_tokens(
        self,
        deployment: str,
        prompt: str | None = None,
        *,
        messages: Sequence[ChatMessage] | None = None,
        tools: Sequence[Tool] | None = None,
        template_arguments: Mapping[str, Any] | None = None,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool = False,
        add_special_tokens: bool = True,
    ) -> TokenCount:
        """How many tokens a prompt has, and how many there may be; arguments as in `tokenize`.

        Raises:
            errors.InvalidPrompt: As `tokenize` raises it.
            errors.NoChatTemplate: The same.
        """
        chat = Chat(tools, template_arguments, add_generation_prompt, continue_final_message)
        request = models.tokenize(
            deployment, prompt, messages, chat, add_special_tokens=add_special_tokens
        )
        counting = models.count(request)
        answer = await self._connection.call(self._connection.models.CountTokens, counting)
        return TokenCount(answer.tokens, answer.context_tokens)

    async def detokenize(
        self, deployment: str, token_ids: Sequence[int], *, skip_special_tokens: bool = True
    ) -> str:
        """The text of tokens.

        Raises:
            errors.InvalidPrompt: The model does not know one of them.
        """
        with fitting():
            request = pb.DetokenizeRequest(
                deployment=deployment,
                token_ids=token_ids,
                skip_special_tokens=None if skip_special_tokens else False,
            )
        answer = await self._connection.call(self._connection.models.Detokenize, request)
        return answer.text

    async def token_texts(self, deployment: str, token_ids: Sequence[int]) -> list[str]:
        """The text of each token as it is written after others; U+FFFD: a part of a character.

        Raises:
            errors.InvalidPrompt: The model does not know one of them.
        """
        with fitting():
            request = pb.DetokenizeRequest(deployment=deployment, token_ids=token_ids, each=True)
        answer = await self._connection.call(self._connection.models.Detokenize, request)
        return list(answer.texts)

    async def render_chat(
        self,
        deployment: str,
        messages: Sequence[ChatMessage],
        *,
        tools: Sequence[Tool] | None = None,
        template_arguments: Mapping[str, Any] | None = None,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool = False,
    ) -> str:
        """A conversation as the model's chat template writes it; arguments as in `generate`.

        Raises:
            errors.InvalidPrompt: A message is none, or the template refuses them.
            errors.NoChatTemplate: The model has none.
        """
        chat = Chat(tools, template_arguments, add_generation_prompt, continue_final_message)
        with fitting():
            request = pb.RenderChatRequest(
                deployment=deployment, messages=chats.chat_messages(messages, chat)
            )
        answer = await self._connection.call(self._connection.models.RenderChat, request)
        return answer.text
