"""Conversations through the whole system: the model sees what its template makes of all of it."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

import sllm
from sllm import errors
from tests.e2e.cluster import Cluster

TEMPLATE = (
    "{{ greeting }}{% for t in tools or [] %}{{ t.function.name }}{% endfor %}"
    "{% for m in messages %}[{{ m.role }}: {{ m.content }}]{% endfor %}"
    "{% if add_generation_prompt %}[assistant: {% endif %}"
)
TOOL: sllm.Tool = {"type": "function", "function": {"name": "add", "parameters": {}}}
HI: list[sllm.ChatMessage] = [{"role": "user", "content": "Hi"}]
SAID: list[sllm.ChatMessage] = [*HI, {"role": "assistant", "content": "I am"}]
PARTS: list[sllm.ChatMessage] = [
    {"role": "user", "content": [{"type": "text", "text": one} for one in ("one", "two")]}
]

CHATS: dict[str, tuple[dict[str, Any], str]] = {
    "plain": ({"messages": HI}, "[user: Hi][assistant: "),
    "tools and variables": (
        {"messages": HI, "tools": [TOOL], "template_arguments": {"greeting": "Hey "}},
        "Hey add[user: Hi][assistant: ",
    ),
    "gone on with": (
        {"messages": SAID, "continue_final_message": True},
        "[user: Hi][assistant: I am",
    ),
    "not answered": ({"messages": HI, "add_generation_prompt": False}, "[user: Hi]"),
    "parts": ({"messages": PARTS}, "[user: one\ntwo][assistant: "),
}
BAD: dict[str, dict[str, Any]] = {
    "a variable of ours": {"template_arguments": {"tokenize": True}},
    "a tool without a name": {"tools": [{"type": "function", "function": {"name": " "}}]},
    "two ends": {"add_generation_prompt": True, "continue_final_message": True},
    "half a character": {"template_arguments": '{"greeting": "\\ud800"}'},
    "nothing to go on with": {"messages": [], "continue_final_message": True},
}


@pytest.fixture(scope="module")
def deployed(
    cluster: Cluster, models: Path, engine: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    model = shutil.copytree(models / "tiny-llama", tmp_path_factory.mktemp("chat") / "model")
    (model / "chat_template.jinja").write_text(TEMPLATE)
    cluster.client.deploy("chat", f"file://{model}", engine=engine, keep_alive=60.0)
    yield "chat"
    cluster.client.delete("chat")
    cluster.wait_for_instances(0)


@pytest.mark.parametrize("name", CHATS)
def test_the_model_sees_what_the_template_writes(
    cluster: Cluster, models: Path, deployed: str, name: str
) -> None:
    options, text = CHATS[name]
    tokenizer = AutoTokenizer.from_pretrained(models / "tiny-llama")
    prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
    greedy: dict[str, Any] = {"temperature": 0.0, "max_tokens": 12}
    expected = cluster.client.complete(deployed, prompt_token_ids=prompt, **greedy)
    found = cluster.client.complete(deployed, **options, **greedy)
    assert found.usage.prompt_tokens == len(prompt)
    assert found.token_ids == expected.token_ids


@pytest.mark.parametrize("what", BAD)
def test_what_cannot_be_rendered_is_refused(cluster: Cluster, deployed: str, what: str) -> None:
    with pytest.raises(errors.InvalidPrompt):
        cluster.client.complete(deployed, **{"messages": HI, **BAD[what]})
    good = cluster.client.complete(deployed, messages=HI, max_tokens=1)
    assert good.usage.completion_tokens == 1
