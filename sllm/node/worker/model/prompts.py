"""From what a caller sends to the tokens that an engine takes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from sllm.chat.conversation import Conversation
from sllm.chat.images import Image
from sllm.errors import ContextExceeded, InvalidPrompt

LETTERS_PER_TOKEN: Final = 4
"""Of text, about: for how long it takes to make text of tokens."""


@dataclass(frozen=True, slots=True)
class TextPrompt:
    """Tokenised as it is, with the special tokens that the tokenizer adds."""

    text: str


@dataclass(frozen=True, slots=True)
class TokenPrompt:
    """Tokens already."""

    token_ids: tuple[int, ...]
    images: tuple[Image, ...] = ()
    """That have their places among them."""


@dataclass(frozen=True, slots=True)
class RenderedPrompt:
    """A conversation as the model's chat template writes it, special tokens included."""

    text: str
    images: tuple[Image, ...] = ()
    """For each of which it has written a token."""


Prompt = TextPrompt | TokenPrompt | Conversation


def images(prompt: TextPrompt | TokenPrompt | RenderedPrompt) -> tuple[Image, ...]:
    """Those of a prompt."""
    return () if isinstance(prompt, TextPrompt) else prompt.images


def size_bytes(prompt: TextPrompt | TokenPrompt | RenderedPrompt) -> int:
    """Of what has to be tokenized, about: by its letters. Tokens are tokens already."""
    match prompt:
        case TextPrompt(text) | RenderedPrompt(text, _):
            return len(text)
        case TokenPrompt():
            return 0


def encode(
    prompt: TextPrompt | TokenPrompt | RenderedPrompt, tokenizer: Any, vocabulary_size: int
) -> tuple[int, ...]:
    """The prompt's token ids. Takes a while for long ones.

    Args:
        prompt: what the caller sent; a conversation has been rendered.
        tokenizer: the model's, from transformers.
        vocabulary_size: token ids that the model knows are less than this.

    Raises:
        InvalidPrompt: It has no tokens, or one that the model does not know.
    """
    found = tokens(prompt, tokenizer)
    if not found:
        raise InvalidPrompt("the prompt is empty: it has no tokens")
    check_known(found, vocabulary_size)
    return found


def tokens(prompt: TextPrompt | TokenPrompt | RenderedPrompt, tokenizer: Any) -> tuple[int, ...]:
    """The prompt's token ids, which may be none, and may be unknown to the model."""
    match prompt:
        case TokenPrompt(token_ids, _):
            return token_ids
        case TextPrompt(text):
            return tuple(tokenizer(text)["input_ids"])
        case RenderedPrompt(text, _):
            # The template writes the special tokens itself.
            return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def check_known(token_ids: Sequence[int], vocabulary_size: int) -> None:
    """Refuses tokens that the model does not know.

    Raises:
        InvalidPrompt: Names one that is not below `vocabulary_size`.
    """
    for token in (min(token_ids, default=0), max(token_ids, default=0)):
        if not 0 <= token < vocabulary_size:
            raise InvalidPrompt(
                f"token id {token} is not in the model's vocabulary of {vocabulary_size} tokens"
            )


def token_allowance(prompt_tokens: int, max_tokens: int | None, context_tokens: int) -> int:
    """How many tokens may be generated.

    Raises:
        ContextExceeded: Prompt and max_tokens together do not fit; gives the numbers.
    """
    wanted = max_tokens if max_tokens is not None else 1
    if prompt_tokens + wanted > context_tokens:
        raise ContextExceeded(
            f"{prompt_tokens} prompt tokens and {wanted} to generate exceed the context of "
            f"{context_tokens} tokens",
            metadata={
                "prompt_tokens": str(prompt_tokens),
                "max_tokens": str(wanted),
                "context_tokens": str(context_tokens),
            },
        )
    return max_tokens if max_tokens is not None else context_tokens - prompt_tokens
