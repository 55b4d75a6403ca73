"""The committed model, and the models that tests and benchmarks make, work in transformers."""

import json
import re
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import torch
from make_models import make_model
from safetensors.torch import load_file
from shapes import SHAPES
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

COMMITTED = Path(__file__).parents[1] / "examples" / "tiny-llama"
MEGABYTE = 10**6
TINY = [name for name in SHAPES if name.startswith("tiny-")]
WORD = re.compile(r"[A-Za-z]+")


def load_weights(directory: Path) -> dict[str, torch.Tensor]:
    """All the weights of a model, whatever the number of its files."""
    files = sorted(directory.glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def greedy(directory: Path, prompt: str, tokens: int) -> str:
    """The most likely continuation of a prompt, of at most so many tokens."""
    model = AutoModelForCausalLM.from_pretrained(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    inputs = tokenizer(prompt, return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)[0]
    return str(tokenizer.decode(output[inputs.input_ids.shape[1] :], skip_special_tokens=True))


def test_committed_model_is_small() -> None:
    assert sum(file.stat().st_size for file in COMMITTED.iterdir()) <= 8 * MEGABYTE


def test_committed_model_writes_english() -> None:
    text = greedy(COMMITTED, "The `for` statement", 64)
    known = {word.lower() for topic in topics.values() for word in WORD.findall(topic)}
    words = [word.lower() for word in WORD.findall(text)]
    assert "\N{REPLACEMENT CHARACTER}" not in text
    assert len(words) >= 10
    assert sum(word in known for word in words) >= 0.9 * len(words)


def test_committed_tokenizer_represents_any_text() -> None:
    tokenizer = AutoTokenizer.from_pretrained(COMMITTED)
    text = "naïve 日本語 🙂\t\x00"
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text


def test_committed_chat_template_marks_roles_and_ends_turns() -> None:
    tokenizer = AutoTokenizer.from_pretrained(COMMITTED)
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Bye"},
    ]
    rendered = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert rendered == (
        "<|bos|><|system|>Be brief.<|eos|><|user|>Hi<|eos|><|assistant|>Hello<|eos|>"
        "<|user|>Bye<|eos|><|assistant|>"
    )


@pytest.mark.parametrize("name", TINY)
def test_tiny_models_generate(name: str, tmp_path: Path) -> None:
    directory = make_model(name, tmp_path / name)
    weights = directory / "model.safetensors"
    assert 1 * MEGABYTE <= weights.stat().st_size <= 5 * MEGABYTE
    assert len(greedy(directory, "The for statement", 16)) > 16


@pytest.mark.parametrize("name", TINY)
def test_the_last_token_does_not_decide_alone(name: str, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(make_model(name, tmp_path / name))
    prompts = torch.tensor([[1, 300, 301, 302], [1, 400, 401, 302]])
    first, second = model(prompts).logits[:, -1]
    assert first.argmax() != second.argmax()


@pytest.mark.parametrize("name", TINY)
def test_special_tokens_are_those_of_the_tokenizer(name: str, tmp_path: Path) -> None:
    directory = make_model(name, tmp_path / name)
    config = AutoConfig.from_pretrained(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    generation = json.loads((directory / "generation_config.json").read_text())
    for token in ("bos_token_id", "eos_token_id", "pad_token_id"):
        assert getattr(config, token) == getattr(tokenizer, token) == generation[token]


@pytest.mark.parametrize("name", TINY)
def test_shards_hold_the_weights_of_the_single_file(name: str, tmp_path: Path) -> None:
    single = load_weights(make_model(name, tmp_path / "single"))
    directory = make_model(name, tmp_path / "sharded", shards=3)
    sharded = load_weights(directory)
    assert len(list(directory.glob("model-*-of-00003.safetensors"))) == 3
    assert single.keys() == sharded.keys()
    assert all(torch.equal(single[name], sharded[name]) for name in single)
    assert AutoModelForCausalLM.from_pretrained(directory).num_parameters() > 0


def test_seed_and_type_are_as_asked(tmp_path: Path) -> None:
    first = load_weights(make_model("tiny-llama", tmp_path / "first", dtype="bfloat16"))
    other = load_weights(make_model("tiny-llama", tmp_path / "other", dtype="bfloat16", seed=1))
    assert {tensor.dtype for tensor in first.values()} == {torch.bfloat16}
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])
