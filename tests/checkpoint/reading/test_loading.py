"""`load`: packed checkpoints and plain safetensors, beside what the safetensors library reads."""

import gc
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
import torch
from safetensors.torch import load_file, save_file

from sllm.checkpoint.reading import weights as weights_module
from sllm.checkpoint.reading.loading import load
from sllm.errors import CheckpointCorrupt, InvalidSource, SourceNotFound, UnsupportedModel
from tests.checkpoint.checkpoints import (
    assert_same,
    bits,
    flip_bit,
    import_model,
    random_weights,
    write_model,
)
from tests.checkpoint.plans import CHUNK


@pytest.fixture(autouse=True)
def _no_fallback() -> Iterator[None]:
    """Reads that leave direct I/O are slow, and say so."""
    with structlog.testing.capture_logs() as logs:
        yield
    assert not [line for line in logs if line["event"] == "node.direct_io_refused"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_model(tmp_path / "source")


def test_a_packed_checkpoint(source: Path, tmp_path: Path) -> None:
    import_model(source, tmp_path / "packed")
    assert_same(load(tmp_path / "packed"), load_file(source / "model.safetensors"))


def test_a_safetensors_file_and_its_directory(source: Path) -> None:
    expected = load_file(source / "model.safetensors")
    assert_same(load(source / "model.safetensors"), expected)
    assert_same(load(str(source)), expected)


def test_shards_that_an_index_names(tmp_path: Path) -> None:
    weights = random_weights()
    shard_of = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(weights)}
    for shard in sorted(set(shard_of.values())):
        part = {name: weights[name] for name in weights if shard_of[name] == shard}
        save_file(part, tmp_path / shard)
    index = {"weight_map": shard_of}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_same(load(tmp_path), weights)


@pytest.mark.parametrize("length", [0, 1, 4095, 4096, CHUNK, CHUNK + 1, 3 * CHUNK - 9])
def test_safetensors_files_may_end_anywhere_in_a_chunk(
    tmp_path: Path, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights_module, "CHUNK_BYTES", CHUNK)
    weights = {"a": torch.arange(length, dtype=torch.int32).to(torch.uint8), "b": torch.ones(3)}
    save_file(weights, tmp_path / "x.safetensors")
    assert_same(load(tmp_path / "x.safetensors"), weights)


def test_a_tensor_that_begins_between_elements_is_copied_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    raw = torch.arange(19, dtype=torch.uint8)
    header = {
        "byte": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
        "long": {"dtype": "I64", "shape": [2], "data_offsets": [3, 19]},
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw.numpy().tobytes())
    loaded = load(path)
    assert loaded["long"].data_ptr() % 8 == 0
    assert loaded["long"].tolist() == raw[3:].clone().view(torch.int64).tolist()
    assert bits(loaded["byte"]) == bytes([0, 1, 2])


def test_the_memory_outlives_everything_but_the_last_tensor(source: Path) -> None:
    kept = load(source)["model.norm.weight"]
    gc.collect()
    assert torch.equal(kept, random_weights()["model.norm.weight"])
    kept.add_(1)  # and it is the caller's own


def test_a_flipped_bit_is_found_unless_nobody_looks(source: Path, tmp_path: Path) -> None:
    import_model(source, tmp_path / "packed")
    path = tmp_path / "packed" / "partition-00000.bin"
    flip_bit(path, CHUNK + 5)
    with pytest.raises(CheckpointCorrupt) as caught:
        load(tmp_path / "packed")
    assert caught.value.metadata == {"file": str(path), "offset": str(CHUNK)}
    assert set(load(tmp_path / "packed", verify=False)) == set(random_weights())


def test_a_file_cut_short_is_found(source: Path) -> None:
    path = source / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointCorrupt, match=r"model\.safetensors at offset"):
        load(source)


def test_what_is_not_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFound, match="neither a file nor a directory"):
        load(tmp_path / "nothing")
    with pytest.raises(InvalidSource, match=r"no \*\.safetensors files"):
        load(tmp_path)


def test_a_dtype_that_torch_lacks_is_named(tmp_path: Path) -> None:
    header = json.dumps({"t": {"dtype": "F6_E2M3", "shape": [4], "data_offsets": [0, 3]}}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(3))
    with pytest.raises(UnsupportedModel, match="'t' is F6_E2M3"):
        load(path)
