"""One identity for weights and files: equal wherever it lies, another one after any change."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sllm import checkpoint
from sllm.checkpoint.sources import identity
from sllm.checkpoint.sources.sources import LocalSource, fingerprint
from sllm.errors import CheckpointCorrupt
from tests.checkpoint.checkpoints import flip_bit, random_weights, write_model, write_pooling


def identity_of(directory: Path) -> str:
    source = LocalSource(directory)
    return identity.identify(source, fingerprint(source))


@pytest.fixture(params=["whole", "in blocks"])
def model(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if request.param == "in blocks":
        monkeypatch.setattr(identity, "WHOLE_BYTES", 0)
    return write_model(tmp_path / "model")


def test_it_is_the_same_elsewhere_and_at_another_time(model: Path, tmp_path: Path) -> None:
    before = identity_of(model)
    other = shutil.copytree(model, tmp_path / "other")
    for path in other.iterdir():
        os.utime(path, (1, 1))
    assert identity_of(other) == before
    (other / "README.md").write_text("of no interest")
    assert identity_of(other) == before


def _rewrite(name: str) -> Callable[[Path], object]:
    return lambda model: (model / name).write_text('{"version": "2.0"}')


CHANGES: dict[str, Callable[[Path], object]] = {
    "how it pools": write_pooling,
    "other weights": lambda model: write_model(model, seed=1),
    "one tensor of the same shape": lambda model: write_model(
        model, {**random_weights(), "model.norm.weight": torch.zeros(16)}
    ),
    "a tensor of another name": lambda model: write_model(
        model, {f"{name}.x": tensor for name, tensor in random_weights().items()}
    ),
    "the configuration": lambda model: (model / "config.json").write_text('{"model_type": "x"}'),
    "the tokenizer": _rewrite("tokenizer.json"),
    "a chat template": lambda model: (model / "chat_template.jinja").write_text("{{ x }}"),
    "generation settings": _rewrite("generation_config.json"),
    "a tokenizer that is gone": lambda model: (model / "tokenizer.json").unlink(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_any_change_makes_another(model: Path, change: Callable[[Path], object]) -> None:
    before = identity_of(model)
    change(model)
    assert identity_of(model) != before


def test_of_small_models_every_bit_counts(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    before = identity_of(model)
    flip_bit(model / "model.safetensors", 30_001)
    assert identity_of(model) != before


def test_a_packed_one_is_its_content(tmp_path: Path) -> None:
    model, packed = write_model(tmp_path / "model"), tmp_path / "packed"
    digest = checkpoint.pack(model, packed)
    assert identity_of(packed) == digest
    (packed / "tokenizer.json").write_text('{"version": "1.1"}')  # of the same size
    with pytest.raises(CheckpointCorrupt, match=r"tokenizer\.json"):
        identity_of(packed)


def test_what_changes_under_the_look_is_noticed(model: Path) -> None:
    source = LocalSource(model)
    before = fingerprint(source)
    write_model(model, seed=1)
    with pytest.raises(CheckpointCorrupt, match="was changed"):
        identity.identify(source, before)
