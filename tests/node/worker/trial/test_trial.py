"""What Deploy refuses: whatever a model's files can hold, as a typed refusal."""

import json
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from sllm import checkpoint
from sllm.errors import UnsupportedModel
from sllm.node.worker.backends.transformers_backend import TransformersBackend
from sllm.node.worker.engine import transformers_engine
from sllm.node.worker.trial import trial
from sllm.node.worker.trial.trial import try_model
from tests.node.worker.trial.architectures import CASES, make

BACKEND = TransformersBackend()


@pytest.fixture
def directory(models: Path, tmp_path: Path) -> Path:
    """A copy of tiny-llama to be spoiled."""
    return copytree(models / "tiny-llama", tmp_path / "model")


def rewrite(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


ODD: tuple[Any, ...] = (0, -1, "128", None, 1.5, [1], {}, True, 2**40)
VALUES: tuple[dict[str, Any], ...] = (
    *(
        {field: value}
        for field in ("num_attention_heads", "num_hidden_layers", "hidden_size", "vocab_size")
        for value in ODD
    ),
    *(
        {field: value}
        for field in ("hidden_size", "vocab_size", "intermediate_size", "num_attention_heads")
        for value in (10**9, 2**31 - 1, 4 * 10**9)
    ),
    *({"num_hidden_layers": value} for value in (1001, 10**5, 10**7, 10**9)),
    {"hidden_size": 10**9, "vocab_size": 10**9, "num_hidden_layers": 1000},
    {"num_hidden_layers": 10**6, "layer_types": ["full_attention"] * 10**6},
    {"num_key_value_heads": 10**9},
    {"num_key_value_heads": 0},
    {"num_key_value_heads": 3},
    {"head_dim": 0},
    {"head_dim": 10**9},
    {"intermediate_size": 0},
    {"intermediate_size": "x"},
    {"max_position_embeddings": 0},
    {"max_position_embeddings": "long"},
    {"max_position_embeddings": None},
    {"rms_norm_eps": "small"},
    {"rms_norm_eps": float("nan")},
    {"hidden_act": "no_such_activation"},
    {"hidden_act": 7},
    {"rope_parameters": {"rope_type": "no_such_rotation", "rope_theta": 1e4}},
    {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 0}},
    {"rope_parameters": "none"},
    {"rope_parameters": [1]},
    {"layer_types": ["full_attention"]},
    {"layer_types": ["other_attention"] * 3},
    {"architectures": "LlamaForCausalLM"},
    {"architectures": [7]},
    {"architectures": []},
    {"model_type": 5},
    {"model_type": ""},
    {"dtype": "no_such_dtype"},
    {"dtype": 5},
    {"eos_token_id": "</s>"},
    {"eos_token_id": [[2]]},
    {"quantization_config": {"quant_method": "gptq", "bits": 4}},
    {"quantization_config": {"quant_method": "no_such_method"}},
    {"quantization_config": {}},
    {"quantization_config": 5},
)


@pytest.mark.parametrize("changes", VALUES, ids=range(len(VALUES)))
def test_whatever_a_configuration_holds_is_served_or_refused(
    directory: Path, changes: dict[str, Any]
) -> None:
    rewrite(directory / "config.json", **changes)
    with pytest.raises(UnsupportedModel) as refusal:
        try_model(directory, None, (), BACKEND)
    assert 10 < len(refusal.value.message) < 1000


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "7", "null", '"text"', "{}", "[" * 100_000, '{"a":' * 100_000, "\x00", "﻿{}"],
    ids=range(11),
)
def test_a_configuration_that_is_none_is_refused(directory: Path, content: str) -> None:
    (directory / "config.json").write_text(content)
    with pytest.raises(UnsupportedModel):
        try_model(directory, None, (), BACKEND)


def test_the_field_that_is_wrong_is_named(directory: Path) -> None:
    rewrite(directory / "config.json", num_attention_heads=0)
    with pytest.raises(UnsupportedModel, match="num_attention_heads"):
        try_model(directory, None, (), BACKEND)


def test_more_experts_than_there_are_cannot_be_chosen(tmp_path: Path) -> None:
    (mixtral,) = [case for case in CASES if case.name == "Mixtral"]
    make(mixtral, tmp_path)
    rewrite(tmp_path / "config.json", num_experts_per_tok=5)
    with pytest.raises(UnsupportedModel, match="num_experts_per_tok is 5, and there are 4 experts"):
        try_model(tmp_path, None, (), BACKEND)


def test_what_is_held_in_memory_alone_is_tried_without_its_weights(
    directory: Path, tmp_path: Path
) -> None:
    """As where the disk is full: the small files are there, and the manifest."""
    checkpoint.pack(directory, tmp_path / "packed")
    for partition in (tmp_path / "packed").glob("partition-*"):
        partition.unlink()
    assert try_model(tmp_path / "packed", None, (), BACKEND) == try_model(
        directory, None, (), BACKEND
    )


def test_a_tokenizer_that_makes_no_tokens_is_refused(directory: Path) -> None:
    (directory / "tokenizer.json").write_text(
        '{"model": {"type": "BPE", "vocab": {}, "merges": []}}'
    )
    with pytest.raises(UnsupportedModel, match="tokenizer"):
        try_model(directory, None, (), BACKEND)


def test_attention_that_leaves_something_out_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As transformers' own attention on a paged cache leaves out the cap of scores."""
    from transformers.integrations.eager_paged import eager_paged_attention_forward

    (gemma,) = [case for case in CASES if case.name == "Gemma 2"]
    make(gemma, tmp_path)
    monkeypatch.setattr(transformers_engine, "attend_as_models_do", lambda: None)
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "paged|eager", eager_paged_attention_forward)
    with pytest.raises(UnsupportedModel, match="because of attn_logit_softcapping"):
        try_model(tmp_path, None, (), BACKEND)


def test_a_rotation_that_depends_on_others_in_the_batch_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which is why a context is as long as the one that the model was trained on."""
    (phi,) = [case for case in CASES if case.name == "Phi 3, 128k"]
    make(phi, tmp_path)
    assert try_model(tmp_path, None, (), BACKEND).model.context_tokens == 64
    monkeypatch.setattr(trial, "context_tokens", lambda config: config.max_position_embeddings)
    with pytest.raises(UnsupportedModel, match="because of rope_type 'longrope'"):
        try_model(tmp_path, None, (), BACKEND)


def test_what_was_compared_once_is_not_compared_again(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verdict = try_model(directory, None, (), BACKEND)
    monkeypatch.setattr(trial, "compare", lambda *_: pytest.fail("compared again"))
    rewrite(directory / "config.json", bos_token_id=3)
    assert try_model(directory, None, (verdict.features,), BACKEND) == verdict
