"""Chat templates: programs that come with a model, run within bounds."""

import operator
from collections.abc import Callable
from functools import cache
from typing import Any

from jinja2.sandbox import SandboxedEnvironment

from sllm.errors import InvalidPrompt, NoChatTemplate
from sllm.node.worker.model.prompts import Conversation, RenderedPrompt
from sllm.node.worker.model.refusing import sentence
from sllm.node.worker.model.time_limit import TookTooLong, time_limit

RENDER_SECONDS = 2.0
"""Of a processor's time that a template may take: a thousand times what they do."""
ADDED_LETTERS = 1 << 22
"""That a template may add to those of the messages; and that one operation may make."""
_LONGEST_NUMBER = 1 << 16
"""Bits."""


def render(conversation: Conversation, tokenizer: Any) -> RenderedPrompt:
    """Writes a conversation as the model's chat template has it.

    Args:
        conversation: what the caller sent.
        tokenizer: the model's, from transformers.

    Raises:
        InvalidPrompt: The template refuses the messages, fails over them, takes too long, or makes
            too much of them.
        NoChatTemplate: The model has none.
    """
    if not tokenizer.chat_template:
        raise NoChatTemplate("this model has no chat template; send text or token ids instead")
    messages = [{"role": one.role, "content": one.content} for one in conversation.messages]
    text = _run(lambda: tokenizer.apply_chat_template(messages, tokenize=False, **_OPTIONS))
    if len(text) > ADDED_LETTERS + sum(len(one.content) for one in conversation.messages):
        raise InvalidPrompt(f"the chat template makes {len(text)} letters of these messages")
    return RenderedPrompt(text)


_OPTIONS = {"add_generation_prompt": True}


def _run(template: Callable[[], object]) -> str:
    _bound_operators()
    try:
        with time_limit(RENDER_SECONDS):
            return str(template())
    except TookTooLong as error:
        raise InvalidPrompt(
            f"the chat template takes more than {RENDER_SECONDS} s for these messages"
        ) from error
    except Exception as error:  # templates fail in every way that programs do
        raise InvalidPrompt(
            f"the chat template refuses these messages: {sentence(error)}"
        ) from error


@cache
def _bound_operators() -> None:
    """Has jinja's sandbox look at operations that take memory, or time in C, by their operands.

    No time limit gets in there: one `10 ** 10 ** 10` would hold this process up for good.
    """
    SandboxedEnvironment.intercepted_binops = frozenset({"*", "**"})
    SandboxedEnvironment.default_binop_table = {
        **SandboxedEnvironment.default_binop_table,
        "*": _times,
        "**": _power,
    }


def _times(left: Any, right: Any) -> Any:
    for one, count in ((left, right), (right, left)):
        repeats = isinstance(one, (str, list, tuple)) and isinstance(count, int)
        if repeats and len(one) * count > ADDED_LETTERS:
            raise OverflowError(f"{len(one)} letters or entries, {count} times, are too many")
    if _bits(left) + _bits(right) > _LONGEST_NUMBER:
        raise OverflowError("the product is too long a number")
    return operator.mul(left, right)


def _power(left: Any, right: Any) -> Any:
    if isinstance(right, int) and _bits(left) * right > _LONGEST_NUMBER:
        raise OverflowError("the power is too long a number")
    return operator.pow(left, right)


def _bits(number: Any) -> int:
    return number.bit_length() if isinstance(number, int) else 0
