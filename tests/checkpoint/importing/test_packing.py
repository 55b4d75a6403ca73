"""`pack`: from a safetensors directory to a checkpoint under its name."""

import json
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import save_file

from sllm import checkpoint
from sllm.errors import InvalidArgument, InvalidSource, SourceNotFound
from tests.checkpoint.checkpoints import assert_same, random_weights, write_model


def test_a_model_is_packed_with_its_small_files(tmp_path: Path) -> None:
    source, packed = write_model(tmp_path / "source"), tmp_path / "packed"
    seen: list[tuple[int, int]] = []
    digest = checkpoint.pack(
        source, packed, progress=lambda done, total: seen.append((done, total))
    )
    assert checkpoint.inspect(packed).digest == digest
    assert_same(checkpoint.load(packed), random_weights())
    assert (packed / "config.json").read_bytes() == (source / "config.json").read_bytes()
    assert seen[-1][0] == seen[-1][1] == sum(t.nbytes for t in random_weights().values())


def test_weights_alone_are_packed_as_well(tmp_path: Path) -> None:
    save_file(random_weights(), tmp_path / "adapter_model.safetensors")
    checkpoint.pack(str(tmp_path), str(tmp_path / "packed"))
    assert_same(checkpoint.load(tmp_path / "packed"), random_weights())


def test_a_dtype_converts_weights_and_what_the_configuration_says(tmp_path: Path) -> None:
    checkpoint.pack(write_model(tmp_path / "source"), tmp_path / "packed", dtype="bfloat16")
    expected = {name: tensor.bfloat16() for name, tensor in random_weights().items()}
    assert_same(checkpoint.load(tmp_path / "packed"), expected)
    assert json.loads((tmp_path / "packed" / "config.json").read_text())["dtype"] == "bfloat16"


def test_what_cannot_be_packed_is_refused(tmp_path: Path) -> None:
    source = write_model(tmp_path / "source")
    with pytest.raises(SourceNotFound):
        checkpoint.pack(tmp_path / "nothing", tmp_path / "packed")
    with pytest.raises(InvalidArgument, match="int8"):
        checkpoint.pack(source, tmp_path / "packed", dtype="int8")
    with pytest.raises(InvalidArgument, match="is there already"):
        checkpoint.pack(source, source)
    checkpoint.pack(source, tmp_path / "packed")
    with pytest.raises(InvalidSource, match="is packed already"):
        checkpoint.pack(tmp_path / "packed", tmp_path / "again")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["packed", "source"]


@pytest.mark.parametrize(("dtype", "most"), [(None, 128 << 20), ("float32", 320 << 20)])
def test_memory_is_bounded_whatever_the_size(tmp_path: Path, dtype: str | None, most: int) -> None:
    """One tensor of 384 MiB, a hole in its file: far more than the import may hold at once."""
    elements = 192 << 20
    header = json.dumps(
        {"t": {"dtype": "BF16", "shape": [elements], "data_offsets": [0, 2 * elements]}}
    ).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with path.open("r+b") as file:
        file.truncate(8 + len(header) + 2 * elements)
    process, peak = psutil.Process(), 0
    before = process.memory_info().rss

    def look(done: int, total: int) -> None:
        nonlocal peak
        peak = max(peak, process.memory_info().rss - before)

    checkpoint.pack(tmp_path, tmp_path / "packed", dtype=dtype, progress=look)
    assert peak < most
    with checkpoint.open(tmp_path / "packed") as weights:
        assert weights["t"].dtype == (torch.float32 if dtype else torch.bfloat16)
