"""Tensors that published checkpoints have more or less than their model, told from headers alone.

What transformers loads is served, as transformers would; what it would fill with random numbers is
refused by name.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from sllm.checkpoint.sources.sources import LocalSource, inspect
from sllm.errors import UnsupportedModel
from sllm.node.worker.model.description import load_architecture
from sllm.node.worker.trial.fitting import check_fit
from tests.node.worker.trial.architectures import CASES, TOKENS, make
from tests.node.worker.trial.outcomes import generated, served

Weights = dict[str, torch.Tensor]
TIED = {"tie_word_embeddings": True}
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def as_it_is(weights: Weights) -> None:
    """The head is in the file where the model has one of its own."""


def with_head_as_well(weights: Weights) -> None:
    weights[HEAD] = weights[EMBEDDING].clone()


def with_head_alone(weights: Weights) -> None:
    weights[HEAD] = weights.pop(EMBEDDING)


def without_head(weights: Weights) -> None:
    weights.pop(HEAD, None)


def of_the_base_model(weights: Weights) -> None:
    """As GPT-2 was published: without the prefix."""
    for name in list(weights):
        weights[name.removeprefix("transformer.")] = weights.pop(name)


def with_frequencies(weights: Weights) -> None:
    for layer in range(2):
        weights[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.ones(8)


def with_masks(weights: Weights) -> None:
    for layer in range(2):
        weights[f"transformer.h.{layer}.attn.bias"] = torch.ones(1, 1, 64, 64)
        weights[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)


def with_positions(weights: Weights) -> None:
    weights["model.position_ids"] = torch.arange(512).unsqueeze(0)


def with_a_layer_for_further_tokens(weights: Weights) -> None:
    """As GLM 4 and DeepSeek V3 have it, numbered after those that the model has."""
    for name in [name for name in weights if name.startswith("model.layers.1.")]:
        weights[name.replace("layers.1.", "layers.2.")] = weights[name].clone()
    weights["model.layers.2.eh_proj.weight"] = torch.ones(4, 4)
    weights["model.layers.2.shared_head.norm.weight"] = torch.ones(4)


def with_a_module_for_further_tokens(weights: Weights) -> None:
    weights["mtp.layers.0.self_attn.q_proj.weight"] = torch.ones(4, 4)


def with_eyes(weights: Weights) -> None:
    weights["vision_tower.blocks.0.attn.qkv.weight"] = torch.ones(3, 3)
    weights["multi_modal_projector.linear_1.weight"] = torch.ones(2, 2)


SERVED: tuple[tuple[str, Callable[[Weights], None], dict[str, Any], str], ...] = (
    ("Qwen 2", as_it_is, {}, ""),
    ("Gemma", as_it_is, {}, ""),
    ("Gemma", with_head_as_well, {}, ""),
    ("Gemma", with_head_alone, {}, ""),
    ("Qwen 2", without_head, TIED, ""),
    ("Qwen 2", with_head_as_well, TIED, ""),
    ("Qwen 2", as_it_is, TIED, ""),  # which differ: then transformers does not tie them
    ("Mixtral", without_head, TIED, ""),
    ("GPT-2", of_the_base_model, {}, ""),
    ("Llama 2", with_frequencies, {}, ""),
    ("GPT-2", with_masks, {}, "attn.masked_bias"),
    ("Llama 2", with_positions, {}, "position_ids"),
    ("GLM 4 MoE", with_a_layer_for_further_tokens, {}, "model.layers.2.eh_proj.weight"),
    ("Qwen 3", with_a_module_for_further_tokens, {}, "mtp.layers.0"),
    ("Gemma 3, text", with_eyes, {}, "multi_modal_projector"),
)
"""An architecture, what its checkpoint has, its configuration, and what Deploy says is not used."""


def spoilt(
    name: str, spoil: Callable[[Weights], None], changes: dict[str, Any], directory: Path
) -> Path:
    (case,) = [case for case in CASES if case.name == name]
    make(case, directory)
    weights = load_file(directory / "model.safetensors")
    spoil(weights)
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    config = directory / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **changes}))
    return directory


def fit(directory: Path) -> str:
    """What Deploy says of the weights."""
    tensors = inspect(LocalSource(directory)).tensors
    return check_fit(load_architecture(directory), {header.name: header for header in tensors})


@pytest.mark.parametrize(("name", "spoil", "changes", "unused"), SERVED)
def test_what_transformers_loads_is_served(
    name: str,
    spoil: Callable[[Weights], None],
    changes: dict[str, Any],
    unused: str,
    tmp_path: Path,
) -> None:
    directory = spoilt(name, spoil, changes, tmp_path)
    found = fit(directory)
    assert unused in found
    assert bool(unused) == bool(found), found
    reference = AutoModelForCausalLM.from_pretrained(directory).eval()
    assert served(directory) == generated(reference)


def without_one(weights: Weights) -> None:
    del weights["model.layers.1.mlp.up_proj.weight"]


def without_embedding(weights: Weights) -> None:
    del weights[EMBEDDING]
    weights.pop(HEAD, None)


def without_one_of_an_expert(weights: Weights) -> None:
    del weights["model.layers.1.mlp.experts.2.up_proj.weight"]


def with_an_expert_of_another_shape(weights: Weights) -> None:
    weights["model.layers.1.mlp.experts.2.up_proj.weight"] = torch.zeros(3, 5)


def without_an_expert(weights: Weights) -> None:
    for name in [name for name in weights if ".layers.1.mlp.experts.2." in name]:
        del weights[name]


def with_another_shape(weights: Weights) -> None:
    weights["model.layers.1.mlp.up_proj.weight"] = torch.zeros(3, 5)


LARGER = {"vocab_size": TOKENS + 80}
SIZES = rf"\[{TOKENS}, \d+\] instead of \[{TOKENS + 80}, \d+\]"
REFUSED: tuple[tuple[str, Callable[[Weights], None], dict[str, Any], str], ...] = (
    ("Llama 2", without_one, {}, r"lacks model\.layers\.1\.mlp\.up_proj\.weight"),
    ("Gemma", without_embedding, {}, r"lacks .*model\.embed_tokens\.weight"),
    ("Qwen 2", without_head, {}, r"lacks lm_head\.weight"),
    ("Qwen 3 MoE", without_one_of_an_expert, {}, r"up_proj .* model\.layers\.1\.mlp\.experts\.2\."),
    ("Qwen 3 MoE", with_an_expert_of_another_shape, {}, r"\.2\.up_proj\.weight \(\[3, 5\] ins"),
    ("Qwen 3 MoE", without_an_expert, {}, r"model\.layers\.1\.mlp\.experts"),
    ("Llama 2", with_another_shape, {}, r"up_proj\.weight \(\[3, 5\] instead of"),
    ("Llama 2", as_it_is, LARGER, rf"embed_tokens\.weight \({SIZES}"),
    ("Gemma", as_it_is, LARGER, rf"embed_tokens\.weight \({SIZES}"),
    ("Gemma", with_head_as_well, LARGER, rf"embed_tokens\.weight \({SIZES}"),
    ("Gemma", with_head_alone, LARGER, rf"\.weight \({SIZES}"),
    ("GPT-2", as_it_is, LARGER, rf"wte\.weight \({SIZES}"),
    ("Mixtral", as_it_is, LARGER, rf"embed_tokens\.weight \({SIZES}"),
)  # fmt: skip


@pytest.mark.parametrize(("name", "spoil", "changes", "says"), REFUSED)
def test_what_the_model_would_lack_is_refused_by_name(
    name: str,
    spoil: Callable[[Weights], None],
    changes: dict[str, Any],
    says: str,
    tmp_path: Path,
) -> None:
    directory = spoilt(name, spoil, changes, tmp_path)
    with pytest.raises(UnsupportedModel, match=says) as refusal:
        fit(directory)
    assert "aten" not in refusal.value.message
