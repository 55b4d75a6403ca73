"""Models that embed and score are served as transformers has them, or refused before they start."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sllm.errors import UnsupportedModel
from sllm.node.worker.backends.transformers_backend import TransformersBackend
from sllm.node.worker.engine import encoder, pooling
from sllm.node.worker.model.description import load_architecture
from sllm.node.worker.model.module import build_module, build_module_on_device
from sllm.node.worker.trial.trial import try_model
from tests.encoders import change, make_encoder
from tests.node.worker.trial.encoders import ENCODERS, EncoderCase, expected, served
from tests.node.worker.trial.outcomes import refused

BACKEND = TransformersBackend()
DOCUMENT = Path(__file__).parents[4] / "docs" / "architectures.md"


@pytest.mark.parametrize("case", ENCODERS, ids=lambda case: case.name)
def test_it_is_right_or_refused(case: EncoderCase, tmp_path: Path) -> None:
    directory = case.make(tmp_path)
    refusal = refused(directory)
    assert bool(refusal) == bool(case.refused), refusal
    if refusal:
        assert re.search(case.refused, refusal), refusal
        return
    purpose = load_architecture(directory).use.purpose
    torch.testing.assert_close(
        served(directory), expected(directory, purpose.pooling), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("case", [ENCODERS[0], EncoderCase("xlm-roberta", labels=1)])
def test_over_weights_on_a_device_it_is_the_same(case: EncoderCase, tmp_path: Path) -> None:
    directory = case.make(tmp_path)
    found = served(directory, build_module_on_device)
    torch.testing.assert_close(found, served(directory), rtol=1e-4, atol=1e-5)


def test_the_table_that_users_read_says_the_same() -> None:
    rows = [line for line in DOCUMENT.read_text().splitlines() if line.startswith("| `")][1:]
    told = [(row.split(" | ")[0:3]) for row in rows]
    assert told == [
        [
            f"| `{case.model_type}`",
            "scores" if case.labels else "embeds",
            "refused" if case.refused else "served",
        ]
        for case in ENCODERS
    ]


@pytest.mark.parametrize("labels", [0, 1])
def test_what_padding_tells_in_is_refused(
    tmp_path: Path, labels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = make_encoder("bert", tmp_path, labels=labels)
    monkeypatch.setattr(
        "sllm.node.worker.engine.encoder.mask_of",
        lambda *args: torch.ones_like(pooling.mask_of(*args)),
    )
    with pytest.raises(UnsupportedModel, match="among others differs from what it makes of that"):
        try_model(directory, None, (), BACKEND)


def test_what_was_compared_is_not_compared_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for other heads, which run otherwise."""
    embeds = make_encoder("bert", tmp_path / "embeds", pooling="mean_tokens")
    scores = make_encoder("bert", tmp_path / "scores", labels=1)
    verdict = try_model(embeds, None, (), BACKEND)
    monkeypatch.setattr(encoder.Batches, "compute", None)
    assert try_model(embeds, None, (verdict.features,), BACKEND) == verdict
    with pytest.raises(UnsupportedModel):
        try_model(scores, None, (verdict.features,), BACKEND)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"matryoshka_dimensions": ["8"]}, "matryoshka_dimensions in config.json"),
        ({"matryoshka_dimensions": [0]}, "matryoshka_dimensions in config.json"),
        ({"max_position_embeddings": None}, "max_position_embeddings"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers is 1000000"),
        ({"num_hidden_layers": 3}, "lacks encoder.layer.2"),
        ({"hidden_size": 32}, "another shape"),
        ({"architectures": ["BertForMaskedLM"]}, "BertForMaskedLM is not"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised"),
    ],
)
def test_files_that_make_no_sense_are_refused(
    tmp_path: Path, fields: dict[str, Any], says: str
) -> None:
    directory = make_encoder("bert", tmp_path)
    change(directory, **fields)
    with pytest.raises(UnsupportedModel, match=says):
        try_model(directory, None, (), BACKEND)


@pytest.mark.parametrize(
    ("fields", "activation"),
    [
        ({}, "sigmoid"),
        ({"problem_type": "regression"}, "none"),
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}, "none"),
        ({"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}, "none"),
        ({"id2label": {"0": "a", "1": "b"}}, "softmax"),
        (
            {"id2label": {"0": "a", "1": "b"}, "problem_type": "multi_label_classification"},
            "sigmoid",
        ),
    ],
)
def test_scores_are_made_as_the_files_say(
    tmp_path: Path, fields: dict[str, Any], activation: str
) -> None:
    directory = make_encoder("bert", tmp_path, labels=1)
    change(directory, **fields)
    assert load_architecture(directory).use.purpose.activation == activation


def test_other_ways_to_make_scores_are_refused(tmp_path: Path) -> None:
    directory = make_encoder("bert", tmp_path, labels=1)
    change(directory, sbert_ce_default_activation_function="os.system")
    with pytest.raises(UnsupportedModel, match=r"made by os.system; supported are"):
        load_architecture(directory)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [("bert", {"type_vocab_size": 1}), ("distilbert", {}), ("bert", {"type_vocab_size": 2})],
)
def test_texts_are_told_apart_only_for_models_that_are_told(
    tmp_path: Path, kind: str, fields: dict[str, Any]
) -> None:
    """Whatever the tokenizer says: it is often one for other models as well."""
    directory = make_encoder(kind, tmp_path, labels=1, **fields)
    architecture = load_architecture(directory)
    module = build_module(architecture, load_file(directory / "model.safetensors")).eval()
    batches = encoder.Batches(module, None)
    plain, told = (
        batches.compute([encoder.Encodable((5, 6, 7), types)]) for types in ((), (0, 1, 1))
    )
    assert torch.equal(plain, told) == (fields.get("type_vocab_size") != 2)
