"""What is asked of models, and what they answer, between callers and the protocol's messages."""

from collections.abc import Sequence

from serverlessllm.v1 import model_service_pb2 as pb

from sllm.client.types import models
from sllm.client.types.chats import ChatMessage
from sllm.client.wire import chats, listings
from sllm.client.wire.chats import Chat
from sllm.client.wire.requests import check_prompts, fitting


def tokenize(
    deployment: str,
    text: str | None,
    messages: Sequence[ChatMessage] | None,
    chat: Chat,
    *,
    add_special_tokens: bool,
) -> pb.TokenizeRequest:
    """What is to be tokenized.

    Raises:
        errors.InvalidPrompt: Not exactly one of text and messages was given, or a message is none.
        errors.InvalidArgument: A value does not fit its field.
    """
    check_prompts({"prompt": text, "messages": messages}, chat)
    with fitting():
        request = pb.TokenizeRequest(
            deployment=deployment, add_special_tokens=None if add_special_tokens else False
        )
        if text is not None:
            request.text = text
        elif messages is not None:
            request.messages.CopyFrom(chats.chat_messages(messages, chat))
    return request


def count(request: pb.TokenizeRequest) -> pb.CountTokensRequest:
    """The same question, of which only the number is wanted: the messages have the same fields."""
    return pb.CountTokensRequest.FromString(request.SerializeToString())


def details(message: pb.GetModelResponse) -> models.ModelDetails:
    """What there is to know of a model."""
    limits = message.limits
    return models.ModelDetails(
        info=listings.model(message.info),
        engine=message.engine,
        context_tokens=message.context_tokens,
        vocabulary_size=message.vocabulary_size,
        dtype=message.dtype,
        special_tokens=tuple(
            models.SpecialToken(one.token_id, one.text, tuple(one.roles))
            for one in message.special_tokens
        ),
        stop_token_ids=tuple(message.stop_token_ids),
        chat_template=message.chat_template,
        takes_tools=message.takes_tools,
        limits=models.RequestLimits(
            limits.max_stop, limits.max_logprobs, limits.max_tools, limits.max_letters
        ),
        base=message.base,
    )
