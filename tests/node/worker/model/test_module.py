import json
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sllm.errors import UnsupportedModel
from sllm.node.worker.messages import ModelDescription
from sllm.node.worker.model import description
from sllm.node.worker.model.description import load_architecture
from sllm.node.worker.model.module import build_module, load_files
from tests.node.worker.conftest import FAMILIES

Weights = dict[str, torch.Tensor]


@pytest.fixture
def directory(models: Path, tmp_path: Path) -> Path:
    """A copy of tiny-llama to be spoiled."""
    return copytree(models / "tiny-llama", tmp_path / "model")


def rewrite(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_module_uses_the_weights_where_they_are(models: Path, family: str) -> None:
    weights = load_file(models / family / "model.safetensors")
    places = {weight.data_ptr() for weight in weights.values()}
    module = build_module(load_architecture(models / family), weights)
    assert {parameter.data_ptr() for parameter in module.parameters()} <= places
    assert not module.training


def test_tied_weights_stay_tied(models: Path) -> None:
    weights = load_file(models / "tiny-gpt2" / "model.safetensors")
    module = build_module(load_architecture(models / "tiny-gpt2"), weights)
    assert module.lm_head.weight is module.transformer.wte.weight


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_module_has_the_dtype_of_its_weights(models: Path, dtype: torch.dtype) -> None:
    weights = load_file(models / "tiny-llama" / "model.safetensors")
    narrow = {name: weight.to(dtype) for name, weight in weights.items()}
    module = build_module(load_architecture(models / "tiny-llama"), narrow)
    assert {parameter.dtype for parameter in module.parameters()} == {dtype}


def lacking(weights: Weights) -> None:
    del weights["model.layers.1.mlp.up_proj.weight"]


def with_another_shape(weights: Weights) -> None:
    weights["model.norm.weight"] = torch.zeros(64)


@pytest.mark.parametrize(
    ("spoil", "names"),
    [
        (lacking, "lacks model.layers.1.mlp.up_proj.weight"),
        (with_another_shape, r"has in another shape model.norm.weight \(\[64\] instead of"),
    ],
)
def test_weights_that_are_not_the_models_are_refused_by_name(
    models: Path, spoil: Callable[[Weights], None], names: str
) -> None:
    weights = load_file(models / "tiny-llama" / "model.safetensors")
    spoil(weights)
    with pytest.raises(UnsupportedModel, match=f"(?s){names}"):
        build_module(load_architecture(models / "tiny-llama"), weights)


def describe(directory: Path, dtype: str | None) -> ModelDescription:
    return description.describe(load_architecture(directory), dtype)


def test_a_model_is_described_by_its_configuration(models: Path) -> None:
    found = describe(models / "tiny-llama", None)
    assert found.architecture == "LlamaForCausalLM"
    assert found.context_tokens == 512
    assert found.kv_bytes_per_token == 2 * 3 * 2 * 32 * 4  # layers, kv heads, head dim
    assert found.dtype == "float32"


def test_a_dtype_to_convert_to_counts_for_the_cache(models: Path) -> None:
    found = describe(models / "tiny-gpt2", "bfloat16")
    assert found.kv_bytes_per_token == 2 * 3 * 128 * 2
    assert found.dtype == "bfloat16"


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"model_type": "mamba", "architectures": ["MambaForCausalLM"]}, "MambaForCausalLM has"),
        ({"model_type": "bloom", "architectures": ["BloomForCausalLM"]}, "BloomForCausalLM does"),
        ({"model_type": "vit", "architectures": ["ViTModel"]}, "ViTModel is not"),
        ({"model_type": "hal9000"}, "hal9000"),
    ],
)
def test_what_the_engine_cannot_run_is_named(
    directory: Path, changes: dict[str, Any], match: str
) -> None:
    rewrite(directory / "config.json", **changes)
    with pytest.raises(UnsupportedModel, match=match):
        describe(directory, None)


def test_a_configuration_that_is_none_is_refused(directory: Path) -> None:
    (directory / "config.json").write_text("{")
    with pytest.raises(UnsupportedModel, match=r"config\.json"):
        describe(directory, None)


def test_an_unknown_dtype_is_refused(directory: Path) -> None:
    with pytest.raises(UnsupportedModel, match="float17"):
        describe(directory, "float17")


def named_by_the_others(directory: Path) -> set[int]:
    files = load_files(directory)
    return {files.architecture.config.eos_token_id, files.tokenizer.eos_token_id} - {None}


@pytest.mark.parametrize(("ids", "expected"), [(7, {7}), ([7, 9], {7, 9}), (None, set())])
def test_the_generation_configuration_says_what_ends_a_text(
    directory: Path, ids: Any, expected: set[int]
) -> None:
    rewrite(directory / "generation_config.json", eos_token_id=ids)
    assert load_files(directory).stop_token_ids == expected | named_by_the_others(directory)


def test_so_do_the_models_configuration_and_the_tokenizer(directory: Path) -> None:
    rewrite(directory / "config.json", eos_token_id=11)
    rewrite(directory / "generation_config.json", eos_token_id=12)
    tokenizer = load_files(directory).tokenizer
    other = tokenizer.convert_ids_to_tokens(13)
    rewrite(directory / "tokenizer_config.json", eos_token=other)
    assert load_files(directory).stop_token_ids == {11, 12, 13}
    (directory / "generation_config.json").unlink()
    assert load_files(directory).stop_token_ids == {11, 13}


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("[1, 2]", "generation_config.json"),
        ("{", "generation_config.json"),
        ('{"max_new_tokens": 0}', "max_new_tokens"),
        ('{"eos_token_id": [[2]]}', "eos_token_id"),
        ('{"eos_token_id": "</s>"}', "eos_token_id"),
        ("[" * 100_000, "generation_config.json"),
    ],
)
def test_generation_settings_that_cannot_be_used_are_refused(
    directory: Path, content: str, match: str
) -> None:
    (directory / "generation_config.json").write_text(content)
    with pytest.raises(UnsupportedModel, match=match):
        load_files(directory)


def test_a_broken_tokenizer_is_refused(directory: Path) -> None:
    (directory / "tokenizer.json").write_text('{"model": {}}')
    with pytest.raises(UnsupportedModel, match="tokenizer"):
        load_files(directory)
