from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from sllm.chat.conversation import ChatMessage, Conversation
from sllm.errors import ContextExceeded, InvalidChatTemplate, InvalidPrompt, NoChatTemplate
from sllm.node.worker.model import templates
from sllm.node.worker.model.prompts import (
    TextPrompt,
    TokenPrompt,
    encode,
    token_allowance,
)
from sllm.node.worker.model.templates import render

VOCABULARY = 1024
HELLO = Conversation((ChatMessage("user", "Hello"),))


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
    tokens = encode(render(HELLO, tokenizer), tokenizer, VOCABULARY)
    messages = [{"role": "user", "content": "Hello"}]
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    assert list(tokens) == expected["input_ids"]


@pytest.mark.parametrize("token", [-1, 1024, 2**31 - 1])
def test_a_token_that_the_model_does_not_know_is_named(tokenizer: Any, token: int) -> None:
    with pytest.raises(InvalidPrompt, match=str(token)):
        encode(TokenPrompt((5, token, 6)), tokenizer, VOCABULARY)


def test_a_prompt_without_tokens_is_refused(tokenizer: Any) -> None:
    tokenizer.backend_tokenizer.post_processor = None  # a tokenizer that adds nothing
    for prompt in (TextPrompt(""), TokenPrompt(())):
        with pytest.raises(InvalidPrompt, match="empty"):
            encode(prompt, tokenizer, VOCABULARY)


def test_a_conversation_needs_a_template(tokenizer: Any) -> None:
    tokenizer.chat_template = None
    with pytest.raises(NoChatTemplate):
        encode(render(HELLO, tokenizer), tokenizer, VOCABULARY)


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages[9].content }}",
        "{{ messages | length + 'a' }}",
        "{% for _ in range(10000000) %}{% endfor %}",
        "{{ 1 / 0 }}",
        "{{ {}['role'].x }}",
        "{{ messages[0].nothing.more }}",
        "{{ [][3] + 1 }}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
        "{{ (10 ** 10000) ** 10000 }}",
        "{{ 'x' * 10 ** 10 }}",
        "{{ ['x'] * 10 ** 10 }}",
    ],
)
def test_a_template_that_fails_blames_the_prompt(tokenizer: Any, template: str) -> None:
    tokenizer.chat_template = template
    with pytest.raises(InvalidPrompt, match="chat template"):
        encode(render(HELLO, tokenizer), tokenizer, VOCABULARY)


def test_a_template_that_is_none_is_told_with_its_line(tokenizer: Any) -> None:
    tokenizer.chat_template = "Hi\n{% if %}"
    with pytest.raises(InvalidChatTemplate, match="line 2"):
        render(HELLO, tokenizer)


def test_a_conversations_template_goes_before_the_models(tokenizer: Any) -> None:
    tokenizer.chat_template = "{% if %}"
    named = replace(HELLO, template="{{ messages | length }}")
    assert render(named, tokenizer).text == "1"


@pytest.mark.parametrize("body", ["", "{{ 'x' * 100 }}"], ids=["silent", "writing"])
def test_a_template_that_loops_for_ever_is_given_up(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch, body: str
) -> None:
    monkeypatch.setattr(templates, "RENDER_SECONDS", 0.2)
    nested = "{% for _ in range(90000) %}" * 4 + body + "{% endfor %}" * 4
    tokenizer.chat_template = nested
    with pytest.raises(InvalidPrompt, match="takes more than"):
        render(HELLO, tokenizer)
    tokenizer.chat_template = "{{ messages[0].content }}"
    assert render(HELLO, tokenizer).text == "Hello"


def test_what_a_template_adds_is_bounded(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "ADDED_LETTERS", 1000)
    tokenizer.chat_template = "{{ 'x' * 503 }}{{ 'x' * 503 }}"
    with pytest.raises(InvalidPrompt, match="1006 letters"):
        render(HELLO, tokenizer)
    tokenizer.chat_template = "{{ 'x' * 502 }}{{ 'x' * 503 }}"
    assert len(render(HELLO, tokenizer).text) == 1005


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
