"""What an adapter is, told by its settings and headers, and why it is not served."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sllm.errors import UnsupportedAdapter, UnsupportedModel
from sllm.node.worker.model.adapter_files import (
    LayerForm,
    TensorForm,
    adapter_layers,
    check_fits,
)

LAYER = "model.layers.0.self_attn.q_proj"
A = TensorForm(f"base_model.model.{LAYER}.lora_A.weight", "F32", (4, 16))
B = TensorForm(f"base_model.model.{LAYER}.lora_B.weight", "F32", (8, 4))
SETTINGS = {"peft_type": "LORA", "r": 4, "lora_alpha": 8}


def read(directory: Path, *tensors: TensorForm, **settings: Any) -> dict[str, LayerForm]:
    (directory / "adapter_config.json").write_text(json.dumps(SETTINGS | settings))
    return adapter_layers(directory, tensors or (A, B))


def test_an_adapter_is_read_by_layers(tmp_path: Path) -> None:
    assert read(tmp_path) == {LAYER: LayerForm(A.name, B.name, 4, 16, 8, 2.0)}


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({"use_rslora": True}, 8 / math.sqrt(4)),
        ({"alpha_pattern": {"q_proj": 2}}, 0.5),
        ({"alpha_pattern": {r"layers\.0\..*q_proj": 6, "q_proj": 2}}, 1.5),
        ({"alpha_pattern": {"v_proj": 2}}, 2.0),
        ({"r": 99, "rank_pattern": {"q_proj": 4}}, 2.0),
        ({"lora_dropout": 0.5, "layers_to_transform": [0], "fan_in_fan_out": True}, 2.0),
    ],
    ids=str,
)
def test_its_strength_is_that_of_peft(
    tmp_path: Path, settings: dict[str, Any], scale: float
) -> None:
    assert read(tmp_path, **settings)[LAYER].scale == scale


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"peft_type": "IA3"}, "kind 'IA3'"),
        ({"peft_type": None}, "kind None"),
        ({"use_dora": True}, "DoRA"),
        ({"lora_bias": True}, "biases of its own"),
        ({"bias": "all"}, "biases of its base"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"trainable_token_indices": [1]}, "embeddings"),
        ({"target_parameters": ["w"]}, "target_parameters"),
        ({"layer_replication": [[0, 1]]}, "several times"),
        ({"init_lora_weights": "pissa_niter_4"}, "changes its base"),
        ({"init_lora_weights": "OLoRA"}, "changes its base"),
        ({"lora_alpha": "inf"}, "lora_alpha"),
    ],
    ids=str,
)
def test_what_is_more_than_low_rank_matrices_is_refused(
    tmp_path: Path, settings: dict[str, Any], match: str
) -> None:
    with pytest.raises(UnsupportedAdapter, match=match):
        read(tmp_path, **settings)


@pytest.mark.parametrize("settings", [{"lora_alpha": "much"}, {"alpha_pattern": {"(": 1}}])
def test_settings_that_make_no_sense_are_refused(tmp_path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModel, match=r"adapter_config\.json"):
        read(tmp_path, **settings)


@pytest.mark.parametrize(
    ("tensors", "match"),
    [
        ((A,), "only one of two"),
        ((A, B, replace(A, name="base_model.model.lm_head.weight")), "not only"),
        ((A, replace(B, name=B.name.removeprefix("base_model."))), "not only"),
        ((replace(A, dtype="I8"), B), "I8"),
        ((replace(A, dtype="BF16"), B), "do not go together"),
        ((replace(A, shape=(5, 16)), B), "do not go together"),
        ((replace(A, shape=(4, 16, 1)), B), "do not go together"),
        ((replace(A, shape=(0, 16)), replace(B, shape=(8, 0))), "rank 0"),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)
def test_tensors_that_are_no_pairs_are_refused(
    tmp_path: Path, tensors: tuple[TensorForm, ...], match: str
) -> None:
    with pytest.raises(UnsupportedAdapter, match=match):
        read(tmp_path, *tensors)


@pytest.mark.parametrize(
    ("there", "max_rank", "match"),
    [
        ({LAYER: (16, 8)}, 3, "rank 4, and its base takes up to 3"),
        ({LAYER: (32, 8)}, 64, r"q_proj \(16 to 8 instead of 32 to 8\)"),
        ({"model.layers.0.mlp.up": (16, 8)}, 64, "q_proj, which the base does not have.* up"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_numbers(
    tmp_path: Path, there: dict[str, tuple[int, int]], max_rank: int, match: str
) -> None:
    layers = read(tmp_path)
    check_fits(layers, {LAYER: (16, 8), "other": (1, 1)}, 4)
    with pytest.raises(UnsupportedAdapter, match=match):
        check_fits(layers, there, max_rank)
