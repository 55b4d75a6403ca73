"""`open` and `inspect`: single tensors, and what lies where."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sllm import checkpoint
from sllm.checkpoint.files.direct_io import DirectFile
from sllm.checkpoint.format.dtypes import BITS
from sllm.checkpoint.format.manifest import BLOCK_BYTES
from sllm.errors import CheckpointCorrupt, SourceNotFound
from tests.checkpoint.checkpoints import assert_same, import_model, random_weights, write_model


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    import_model(write_model(tmp_path / "source"), tmp_path / "packed")
    return tmp_path / "packed"


def test_it_is_a_mapping_of_names(packed: Path) -> None:
    with checkpoint.open(packed) as weights:
        assert len(weights) == len(random_weights())
        assert next(iter(weights)) == "model.embed_tokens.weight"
        assert "model.norm.weight" in weights
        assert "model.spam" not in weights
        with pytest.raises(KeyError, match="spam"):
            weights["model.spam"]
        assert weights.get("model.spam") is None
        assert_same(dict(weights), random_weights())


def test_tensors_are_the_callers_own_and_outlive_it(packed: Path) -> None:
    with checkpoint.open(packed) as weights:
        first = weights["model.norm.weight"]
        first.zero_()
        assert torch.equal(weights["model.norm.weight"], random_weights()["model.norm.weight"])
    assert not first.any()
    with pytest.raises(ValueError, match="closed"):
        weights["model.norm.weight"]


def test_only_the_tensors_own_blocks_are_read(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[tuple[int, int]] = []
    read_into = DirectFile.read_into

    def spy(file: DirectFile, memory: memoryview, offset: int, size: int) -> None:
        reads.append((offset, offset + len(memory)))
        read_into(file, memory, offset, size)

    monkeypatch.setattr(DirectFile, "read_into", spy)
    entries = {entry.name: entry for entry in checkpoint.inspect(packed).tensors}
    entry = entries["model.layers.1.w"]
    with checkpoint.open(packed) as weights:
        assert not reads
        weights["model.layers.1.w"]
    ((start, end),) = reads
    assert entry.offset - BLOCK_BYTES < start <= entry.offset
    assert entry.offset + entry.size <= end < entry.offset + entry.size + BLOCK_BYTES


def test_a_large_tensor_of_a_safetensors_file(tmp_path: Path) -> None:
    """Larger than a chunk, and it begins within a block."""
    weights = {"a": torch.arange(5 << 20, dtype=torch.int32), "b": torch.arange(3)}
    save_file(weights, tmp_path / "x.safetensors")
    with checkpoint.open(tmp_path / "x.safetensors") as opened:
        assert_same(dict(opened), weights)


def test_a_file_that_shrinks_meanwhile_is_corrupt_at_its_end(packed: Path) -> None:
    path = packed / "partition-00000.bin"
    with checkpoint.open(packed) as weights:
        os.truncate(path, 8192)
        assert torch.equal(
            weights["model.embed_tokens.weight"], random_weights()["model.embed_tokens.weight"]
        )
        with pytest.raises(CheckpointCorrupt, match="the file ends here") as caught:
            weights["model.norm.weight"]
    assert caught.value.metadata["file"] == str(path)


def test_nothing_is_there(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFound):
        checkpoint.open(tmp_path / "nothing")


def test_inspecting_a_packed_checkpoint(packed: Path) -> None:
    found = checkpoint.inspect(packed)
    assert (found.format, found.version, found.path) == ("sllm-checkpoint", 1, str(packed))
    assert found.size_bytes == sum(path.stat().st_size for path in packed.glob("*.bin"))
    assert {entry.name for entry in found.tensors} == set(random_weights())
    assert {file.name for file in found.files} == {"config.json", "tokenizer.json"}


def test_inspecting_safetensors(packed: Path) -> None:
    path = packed.parent / "source" / "model.safetensors"
    found = checkpoint.inspect(path)
    assert (found.format, found.version, found.digest) == ("safetensors", None, None)
    assert found.size_bytes == path.stat().st_size
    content = path.read_bytes()
    for entry in found.tensors:
        raw = content[entry.offset : entry.offset + entry.size]
        assert raw == random_weights()[entry.name].numpy().tobytes()


@pytest.mark.parametrize("dtype", sorted(BITS))
def test_every_dtype_of_safetensors_is_packed_and_inspected(dtype: str, tmp_path: Path) -> None:
    """Also those that torch has no dtype for: their bytes are carried as they are."""
    size = 3 * BITS[dtype]
    text = f'{{"t": {{"dtype": "{dtype}", "shape": [2, 12], "data_offsets": [0, {size}]}}}}'
    (tmp_path / "source").mkdir()
    raw = bytes(index % 2 for index in range(size))
    (tmp_path / "source" / "model.safetensors").write_bytes(
        len(text).to_bytes(8, "little") + text.encode() + raw
    )
    checkpoint.pack(tmp_path / "source", tmp_path / "packed")
    checkpoint.verify(tmp_path / "packed")
    (entry,) = checkpoint.inspect(tmp_path / "packed").tensors
    assert (entry.dtype, entry.shape, entry.size) == (dtype, (2, 12), size)
    assert (tmp_path / "packed" / "partition-00000.bin").read_bytes()[:size] == raw
