"""What models make of text, asked through the whole system, with and without an instance."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

import sllm
from sllm import errors
from tests.e2e.cluster import Cluster

TEMPLATE = (
    "{% for t in tools or [] %}{{ t.function.name }}{% endfor %}"
    "{% for m in messages %}[{{ m.role }}: {{ m.content }}]{% endfor %}"
    "{% if add_generation_prompt %}[assistant: {% endif %}"
)
TOOL: sllm.Tool = {"type": "function", "function": {"name": "add", "parameters": {}}}
HI: list[sllm.ChatMessage] = [{"role": "user", "content": "Hi"}]
TEXTS = ["Once upon a time", "", "Ünïcode 🦙\n\t x", "the " * 20_000]
INSTANCE = pytest.mark.parametrize("instance", [0, 1], ids=["without", "beside one"])


@pytest.fixture(scope="module")
def deployed(
    cluster: Cluster, models: Path, engine: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    model = shutil.copytree(models / "tiny-llama", tmp_path_factory.mktemp("text") / "model")
    (model / "chat_template.jinja").write_text(TEMPLATE)
    cluster.client.deploy("text", f"file://{model}", engine=engine, keep_alive=0.0)
    yield "text"
    cluster.client.delete("text")
    cluster.wait_for_instances(0)


@pytest.fixture
def beside(cluster: Cluster, deployed: str, engine: str, instance: int) -> Iterator[None]:
    """An instance meanwhile, or none."""
    source = cluster.client.deployment(deployed).source
    options: dict[str, Any] = {"engine": engine, "keep_alive": 0.0}
    cluster.client.deploy(deployed, source, min_replicas=instance, **options)
    cluster.wait_for_instances(instance, deployed)
    yield
    cluster.client.deploy(deployed, source, **options)
    cluster.wait_for_instances(0, deployed)


@INSTANCE
def test_it_is_what_the_tokenizer_and_the_template_make(
    cluster: Cluster, models: Path, deployed: str, beside: None
) -> None:
    tokenizer, client = AutoTokenizer.from_pretrained(models / "tiny-llama"), cluster.client
    for text in TEXTS:
        for special in (True, False):
            expected = tokenizer(text, add_special_tokens=special)["input_ids"]
            options: dict[str, Any] = {"add_special_tokens": special}
            assert client.tokenize(deployed, text, **options) == expected
            counted = client.count_tokens(deployed, text, **options)
            assert counted == sllm.TokenCount(len(expected), 512)
            for skip in (True, False):
                assert client.detokenize(
                    deployed, expected, skip_special_tokens=skip
                ) == tokenizer.decode(expected, skip_special_tokens=skip)
        plain = tokenizer(text, add_special_tokens=False)["input_ids"]
        texts = client.token_texts(deployed, [*plain, *plain])
        assert texts[: len(plain)] == texts[len(plain) :]
        if text.isascii():
            assert "".join(texts[: len(plain)]) == text
    chat = {"messages": HI, "tools": [TOOL]}
    written = client.render_chat(deployed, **chat)  # type: ignore[arg-type]  # by name
    assert written == "add[user: Hi][assistant: "
    expected = tokenizer(written, add_special_tokens=False)["input_ids"]
    assert client.tokenize(deployed, **chat) == expected  # type: ignore[arg-type]  # by name
    assert client.count_tokens(deployed, messages=HI).left > 400


@INSTANCE
def test_a_model_tells_of_itself(
    cluster: Cluster, models: Path, deployed: str, engine: str, beside: None
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(models / "tiny-llama")
    found = cluster.client.model(deployed)
    assert found.info.architecture == "LlamaForCausalLM"
    assert (found.engine, found.context_tokens, found.dtype) == (engine, 512, "float32")
    assert found.vocabulary_size >= len(tokenizer)
    assert found.chat_template == TEMPLATE
    assert found.takes_tools
    named = {role: one.token_id for one in found.special_tokens for role in one.roles}
    assert (named["bos"], named["eos"]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert tokenizer.eos_token_id in found.stop_token_ids
    assert found.limits.max_stop == 16


def test_what_generate_sees_is_what_tokenize_says(cluster: Cluster, deployed: str) -> None:
    count = cluster.client.count_tokens(deployed, "Once upon a time").tokens
    result = cluster.client.complete(deployed, "Once upon a time", max_tokens=1)
    assert result.usage.prompt_tokens == count


BAD: dict[str, tuple[type[errors.SllmError], Callable[[sllm.Client, str], object]]] = {
    "no deployment": (errors.DeploymentNotFound, lambda c, _: c.tokenize("nobody", "x")),
    "an unknown token": (errors.InvalidPrompt, lambda c, d: c.detokenize(d, [1, 1 << 30])),
    "a negative token": (errors.InvalidPrompt, lambda c, d: c.detokenize(d, [-1])),
    "nothing": (errors.InvalidPrompt, lambda c, d: c.tokenize(d)),
    "two prompts": (errors.InvalidPrompt, lambda c, d: c.tokenize(d, "x", messages=HI)),
    "too long": (errors.InvalidPrompt, lambda c, d: c.count_tokens(d, "x" * (1 << 22) + "x")),
    "a tool without a name": (
        errors.InvalidPrompt,
        lambda c, d: c.render_chat(
            d, HI, tools=[{"type": "function", "function": {"name": " ", "parameters": {}}}]
        ),
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_questions_are_refused(cluster: Cluster, deployed: str, what: str) -> None:
    kind, ask = BAD[what]
    with pytest.raises(kind):
        ask(cluster.client, deployed)
    assert cluster.client.count_tokens(deployed, "x").tokens


def test_a_model_without_a_template_takes_no_conversations(
    cluster: Cluster, models: Path, engine: str, tmp_path: Path
) -> None:
    model = shutil.copytree(models / "tiny-gpt2", tmp_path / "model")
    for named in model.glob("chat_template*"):
        named.unlink()
    settings = json.loads((model / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    cluster.client.deploy("plain", f"file://{model}", engine=engine)
    try:
        for ask in (cluster.client.render_chat, cluster.client.tokenize):
            with pytest.raises(errors.NoChatTemplate):
                ask("plain", messages=HI)
        found = cluster.client.model("plain")
        assert (found.chat_template, found.takes_tools) == ("", False)
    finally:
        cluster.client.delete("plain")
