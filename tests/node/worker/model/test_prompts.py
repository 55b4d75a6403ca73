from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from sllm.errors import ContextExceeded, InvalidPrompt, NoChatTemplate
from sllm.node.worker.model.prompts import (
    ChatMessage,
    Conversation,
    Prompt,
    TextPrompt,
    TokenPrompt,
    encode,
    token_allowance,
)

VOCABULARY = 1024


@pytest.fixture
def tokenizer(models: Path) -> Any:
    return AutoTokenizer.from_pretrained(models / "tiny-llama")


def test_a_text_gets_the_special_tokens_of_the_tokenizer(tokenizer: Any) -> None:
    tokens = encode(TextPrompt("Once upon"), tokenizer, VOCABULARY)
    assert tokens == tuple(tokenizer("Once upon")["input_ids"])
    assert tokens[0] == tokenizer.bos_token_id


def test_tokens_are_taken_as_they_are(tokenizer: Any) -> None:
    assert encode(TokenPrompt((0, 1023, 5)), tokenizer, VOCABULARY) == (0, 1023, 5)


def test_a_conversation_is_rendered_with_the_template(tokenizer: Any) -> None:
    tokens = encode(Conversation((ChatMessage("user", "Hello"),)), tokenizer, VOCABULARY)
    messages = [{"role": "user", "content": "Hello"}]
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    assert list(tokens) == expected["input_ids"]


@pytest.mark.parametrize("token", [-1, 1024, 2**31 - 1])
def test_a_token_that_the_model_does_not_know_is_named(tokenizer: Any, token: int) -> None:
    with pytest.raises(InvalidPrompt, match=str(token)):
        encode(TokenPrompt((5, token, 6)), tokenizer, VOCABULARY)


def test_a_prompt_without_tokens_is_refused(tokenizer: Any) -> None:
    tokenizer.backend_tokenizer.post_processor = None  # a tokenizer that adds nothing
    prompts: list[Prompt] = [TextPrompt(""), TokenPrompt(())]
    for prompt in prompts:
        with pytest.raises(InvalidPrompt, match="empty"):
            encode(prompt, tokenizer, VOCABULARY)


def test_a_conversation_needs_a_template(tokenizer: Any) -> None:
    tokenizer.chat_template = None
    with pytest.raises(NoChatTemplate):
        encode(Conversation((ChatMessage("user", "Hello"),)), tokenizer, VOCABULARY)


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages[9].content }}",
        "{% if %}",
        "{{ messages | length + 'a' }}",
    ],
)
def test_a_template_that_fails_blames_the_prompt(tokenizer: Any, template: str) -> None:
    tokenizer.chat_template = template
    with pytest.raises(InvalidPrompt, match="chat template"):
        encode(Conversation((ChatMessage("user", "Hello"),)), tokenizer, VOCABULARY)


def test_the_allowance_is_what_was_asked_for_or_what_is_left() -> None:
    assert token_allowance(10, 90, 100) == 90
    assert token_allowance(10, None, 100) == 90
    assert token_allowance(99, None, 100) == 1


@pytest.mark.parametrize(("prompt", "wanted"), [(10, 91), (100, None), (101, 1)])
def test_a_request_beyond_the_context_gets_the_numbers(prompt: int, wanted: int | None) -> None:
    with pytest.raises(ContextExceeded) as caught:
        token_allowance(prompt, wanted, 100)
    assert caught.value.metadata == {
        "prompt_tokens": str(prompt),
        "max_tokens": str(wanted or 1),
        "context_tokens": "100",
    }
