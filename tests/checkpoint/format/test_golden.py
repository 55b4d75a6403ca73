"""Checkpoints that earlier writers wrote, and those that later ones may write."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from sllm import checkpoint
from sllm.errors import InvalidSource
from tests.checkpoint.checkpoints import assert_same

VERSION_1 = Path(__file__).parent / "golden" / "version-1"
DIGEST = "aba2c0a434dbdd47a112beba09a9cb59"


def expected() -> dict[str, torch.Tensor]:
    embedding = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    return {
        "embed.weight": embedding,
        "head.weight": embedding,
        "layers.0.w": torch.arange(2000, dtype=torch.int16),
        "layers.1.flags": torch.tensor([True, False]),
        "layers.1.nothing": torch.empty(0, 7, dtype=torch.bfloat16),
        "scale": torch.tensor(0.5, dtype=torch.float64),
    }


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(VERSION_1, tmp_path / "copy"))


def rewrite(path: Path, **changes: Any) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((path / "manifest.json").read_text()) | changes
    (path / "manifest.json").write_text(json.dumps(manifest))
    return manifest


def test_what_version_1_wrote_is_still_read() -> None:
    loaded = checkpoint.load(VERSION_1)
    assert_same(loaded, expected())
    assert loaded["head.weight"].data_ptr() == loaded["embed.weight"].data_ptr()
    checkpoint.verify(VERSION_1)
    assert checkpoint.inspect(VERSION_1).digest == DIGEST


def test_the_same_tensors_still_lie_in_the_same_places(tmp_path: Path) -> None:
    checkpoint.save(expected(), tmp_path / "new")
    assert checkpoint.inspect(tmp_path / "new").tensors == checkpoint.inspect(VERSION_1).tensors


def test_keys_that_a_later_writer_added_are_ignored(copy: Path) -> None:
    manifest = rewrite(copy, minor=7, made_by="a later version")
    for entry in manifest["tensors"] + manifest["partitions"] + manifest["files"]:
        entry["later"] = {"anything": [1, 2]}
    rewrite(copy, **manifest)
    assert_same(checkpoint.load(copy), expected())
    assert checkpoint.inspect(copy).digest == DIGEST


def test_a_later_major_version_is_refused_by_name(copy: Path) -> None:
    rewrite(copy, version=2)
    for use in (checkpoint.load, checkpoint.open, checkpoint.inspect, checkpoint.verify):
        with pytest.raises(InvalidSource, match=r"manifest\.json: format version 2 is newer"):
            use(copy)
