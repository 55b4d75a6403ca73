"""What is no model in safetensors is named for what it is, with what to do."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sllm.checkpoint.sources.adapters import is_adapter
from sllm.checkpoint.sources.sources import LocalSource, inspect
from sllm.errors import InvalidSource

POINTER = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)


@pytest.mark.parametrize(
    ("files", "match"),
    [
        (["pytorch_model.bin"], r"pytorch_model\.bin.*save_pretrained"),
        (["pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json"], "pickled"),
        (["consolidated.00.pth"], "pickled"),
        (["model-q4_k_m.gguf"], r"q4_k_m\.gguf.*GGUF"),
        (["adapter_config.json", "adapter_model.bin"], "adapter.*save_pretrained"),
        ([], r"has no \*\.safetensors"),
    ],
)
def test_other_forms_of_weights_are_named(tmp_path: Path, files: list[str], match: str) -> None:
    for name in (*files, "config.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(InvalidSource, match=match):
        inspect(LocalSource(tmp_path))


def test_an_adapter_is_a_source_and_a_model_with_settings_of_one_stays_a_model(
    tmp_path: Path,
) -> None:
    weights = {"base_model.model.layer.lora_A.weight": torch.ones(2, 3)}
    save_file(weights, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text("{}")
    found = inspect(LocalSource(tmp_path))
    assert [one.name for one in found.tensors] == list(weights)
    assert is_adapter(tmp_path, weights)
    save_file({"layer.weight": torch.ones(2, 3)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    assert [one.name for one in inspect(LocalSource(tmp_path)).tensors] == ["layer.weight"]
    assert not is_adapter(tmp_path, ["layer.weight"])


@pytest.mark.parametrize("name", ["model.safetensors", "model-00001-of-00002.safetensors"])
def test_pointers_of_git_lfs_are_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_text(POINTER)
    with pytest.raises(InvalidSource, match=rf"{name} is a pointer of Git LFS.*git lfs pull"):
        inspect(LocalSource(tmp_path))
