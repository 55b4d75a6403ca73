"""What chat templates see, of real ones' kinds: text, parts, tools, variables."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from sllm.chat.conversation import RESERVED, ChatMessage, Conversation, Tool, ToolCall
from sllm.errors import InvalidPrompt
from sllm.node.worker.model.templates import render

PLAIN = "{% for m in messages %}[{{ m.role }}: {{ m.content }}]{% endfor %}" + (
    "{% if add_generation_prompt %}[assistant: {% endif %}"
)
PARTS = "{% for m in messages %}{% for p in m.content %}<{{ p.text }}>{% endfor %}{% endfor %}"
EITHER = (
    "{% for m in messages %}{% if m.content is string %}({{ m.content }}){% else %}"
    "{% for p in m.content %}<{{ p.text }}>{% endfor %}{% endif %}{% endfor %}"
)
TOOLS = (
    "{% for t in tools or [] %}{{ t.function.name }}{{ t.function.parameters | tojson }}"
    "{% endfor %}{% for m in messages %}{% for c in m.tool_calls or [] %}"
    "{{ c.id }}/{{ c.function.name }}({{ c.function.arguments.a }}){% endfor %}"
    "{% if m.tool_call_id %}{{ m.tool_call_id }}={{ m.content }} by {{ m.name }}{% endif %}"
    "{% endfor %}"
)
SAID = (ChatMessage("user", parts=("one", "two")),)


@pytest.fixture
def tokenizer(models: Path) -> Any:
    return AutoTokenizer.from_pretrained(models / "tiny-llama")


def rendered(
    tokenizer: Any, template: str, messages: tuple[ChatMessage, ...], **options: Any
) -> str:
    tokenizer.chat_template = template
    return render(Conversation(messages, **options), tokenizer).text


@pytest.mark.parametrize(
    ("template", "text"),
    [(PLAIN, "[user: one\ntwo][assistant: "), (PARTS, "<one><two>"), (EITHER, "<one><two>")],
)
def test_parts_come_in_the_form_that_a_template_knows(
    tokenizer: Any, template: str, text: str
) -> None:
    assert rendered(tokenizer, template, SAID) == text


def test_a_template_sees_tools_calls_and_results(tokenizer: Any) -> None:
    messages = (
        ChatMessage("user", "?"),
        ChatMessage("assistant", tool_calls=(ToolCall("7", "add", '{"a": 5}'),)),
        ChatMessage("tool", "9", tool_call_id="7", name="add"),
    )
    tools = (Tool("add", "Adds.", '{"type": "object"}'), Tool("stop", "", ""))
    text = rendered(tokenizer, TOOLS, messages, tools=tools)
    assert text == 'add{"type": "object"}stop{}7/add(5)7=9 by add'


def test_a_template_sees_variables(tokenizer: Any) -> None:
    template = "{{ enable_thinking }} {{ limit + 1 }}"
    arguments = '{"enable_thinking": false, "limit": 2}'
    assert rendered(tokenizer, template, SAID, arguments=arguments) == "False 3"


def test_a_message_is_gone_on_with(tokenizer: Any) -> None:
    messages = (ChatMessage("user", "Hi"), ChatMessage("assistant", "I am"))
    options = {"add_generation_prompt": False, "continue_final_message": True}
    text = rendered(tokenizer, PLAIN, messages, **options)
    assert text == "[user: Hi][assistant: I am"


def test_an_answer_is_begun_only_where_it_is_wanted(tokenizer: Any) -> None:
    messages = (ChatMessage("user", "Hi"),)
    assert rendered(tokenizer, PLAIN, messages, add_generation_prompt=False) == "[user: Hi]"


def test_half_a_character_is_refused(tokenizer: Any) -> None:
    with pytest.raises(InvalidPrompt, match="half a character"):
        rendered(tokenizer, "{{ '\\ud800' }}", SAID)


def test_what_rendering_takes_itself_is_no_variable(tokenizer: Any) -> None:
    """Whatever `apply_chat_template` has a name for would be taken for that."""
    code = type(tokenizer).apply_chat_template.__code__
    own = set(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])
    assert own - {"documents", "kwargs"} <= RESERVED
