"""`verify` names every place that is wrong, and none that is not."""

import os
from pathlib import Path

import pytest

from sllm import checkpoint
from sllm.checkpoint.reading.verification import find_damage
from sllm.errors import CheckpointCorrupt, InvalidSource, SourceNotFound
from tests.checkpoint.checkpoints import flip_bit, import_model, random_weights, write_model
from tests.checkpoint.plans import CHUNK

PARTITION = "partition-00000.bin"


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    import_model(write_model(tmp_path / "source"), tmp_path / "packed")
    return tmp_path / "packed"


def places(path: Path) -> list[tuple[str, str | None]]:
    return [
        (Path(error.metadata["file"]).name, error.metadata.get("offset"))
        for error in find_damage(path)
    ]


def test_all_is_well_and_all_was_read(packed: Path) -> None:
    seen: list[tuple[int, int]] = []
    checkpoint.verify(packed, lambda done, total: seen.append((done, total)))
    size = (packed / PARTITION).stat().st_size
    assert seen == sorted(seen)
    assert seen[-1] == (size, size)
    checkpoint.verify(packed.parent / "source")


def test_every_wrong_place_is_named(packed: Path) -> None:
    for offset in (17, 18, 3 * CHUNK + 1):
        flip_bit(packed / PARTITION, offset)
    flip_bit(packed / "config.json", 3)
    (packed / "tokenizer.json").unlink()
    assert places(packed) == [
        ("config.json", None),
        (PARTITION, "0"),
        (PARTITION, str(3 * CHUNK)),
        ("tokenizer.json", None),
    ]
    with pytest.raises(CheckpointCorrupt) as caught:
        checkpoint.verify(packed)
    assert caught.value.metadata == {"file": str(packed / "config.json")}
    for part in ("config.json: has", f"{PARTITION} at offset 0:", "tokenizer.json: missing"):
        assert part in caught.value.message


def test_a_partition_cut_short_is_named_where_it_ends_and_read_until_there(packed: Path) -> None:
    flip_bit(packed / PARTITION, 5)
    os.truncate(packed / PARTITION, 2 * CHUNK + 512)
    assert places(packed) == [(PARTITION, "0"), (PARTITION, str(2 * CHUNK + 512))]


def test_a_missing_partition_is_named(packed: Path) -> None:
    (packed / PARTITION).unlink()
    assert places(packed) == [(PARTITION, None)]


def test_a_broken_manifest_is_named(packed: Path) -> None:
    (packed / "manifest.json").write_text("{")
    assert places(packed) == [("manifest.json", None)]


def test_every_broken_header_is_named(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        weights = {f"{name}.{key}": tensor for key, tensor in random_weights().items()}
        write_model(tmp_path, weights).joinpath("model.safetensors").rename(
            tmp_path / f"{name}.safetensors"
        )
    os.truncate(tmp_path / "a.safetensors", 1000)
    os.truncate(tmp_path / "c.safetensors", 4)
    assert [name for name, _ in places(tmp_path)] == ["a.safetensors", "c.safetensors"]
    assert places(tmp_path / "c.safetensors") == [("c.safetensors", "4")]
    assert not places(tmp_path / "b.safetensors")


def test_what_is_no_checkpoint_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFound):
        checkpoint.verify(tmp_path / "nothing")
    with pytest.raises(InvalidSource):
        checkpoint.verify(tmp_path)
