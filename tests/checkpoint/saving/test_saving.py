"""`save`: what it takes, what it refuses, and that nothing half-written is ever seen."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from sllm import checkpoint
from sllm.checkpoint.files.direct_io import DirectFile
from sllm.errors import InvalidArgument, NoCapacity
from tests.checkpoint.checkpoints import assert_same, random_weights


def test_it_says_what_names_the_content(tmp_path: Path) -> None:
    digests = [checkpoint.save(random_weights(seed), tmp_path / str(seed)) for seed in (1, 2)]
    assert digests[0] != digests[1]
    assert digests == [checkpoint.inspect(tmp_path / str(seed)).digest for seed in (1, 2)]


def test_parents_are_made_and_nothing_else_is_left(tmp_path: Path) -> None:
    checkpoint.save(random_weights(), str(tmp_path / "a" / "b"))
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]
    assert_same(checkpoint.load(tmp_path / "a" / "b"), random_weights())


def test_parameters_and_conjugates_are_saved_as_what_they_show(tmp_path: Path) -> None:
    value = torch.randn(3, 5, dtype=torch.complex64)
    weights = {
        "parameter": torch.nn.Parameter(torch.ones(2, 3)),
        "conjugate": value.conj(),
        "negative": value.conj().imag,
        "value": value,
    }
    checkpoint.save(weights, tmp_path / "out")
    loaded = checkpoint.load(tmp_path / "out")
    assert torch.equal(loaded["conjugate"], value.conj().resolve_conj())
    assert torch.equal(loaded["negative"], -value.imag)
    assert torch.equal(loaded["value"], value)
    assert torch.equal(loaded["parameter"], torch.ones(2, 3))


def test_what_shares_all_its_memory_is_written_once(tmp_path: Path) -> None:
    whole = torch.arange(10_000.0)
    tied = {
        "whole": whole,
        "again": whole,
        "shaped": whole.view(100, 100),
        "bits": whole.view(torch.int32),
    }
    checkpoint.save(tied, tmp_path / "out")
    entries = checkpoint.inspect(tmp_path / "out").tensors
    assert len({(entry.offset, entry.size) for entry in entries}) == 1
    checkpoint.save({"whole": whole, "part": whole[:5_000]}, tmp_path / "parts")
    assert_same(checkpoint.load(tmp_path / "parts"), {"whole": whole, "part": whole[:5_000]})


@pytest.mark.parametrize(
    ("weights", "problem"),
    [
        ({"x": 3}, "'x' is a int, not a tensor"),
        ({7: torch.ones(1)}, "the name 7 is not text"),
        ({"x": torch.ones(2, dtype=torch.complex128)}, r"'x' is torch\.complex128; what can be"),
        ({"x": torch.eye(2).to_sparse()}, "no dense memory"),
        ({"x": torch.ones(2, device="meta")}, "no dense memory"),
    ],
)
def test_what_cannot_be_saved_is_refused_first(
    weights: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidArgument, match=problem):
        checkpoint.save({"fine": torch.ones(2), **weights}, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    checkpoint.save({"x": torch.ones(1)}, tmp_path / "out")
    with pytest.raises(InvalidArgument, match="is there already"):
        checkpoint.save({"x": torch.zeros(1)}, tmp_path / "out")
    assert checkpoint.load(tmp_path / "out")["x"].item() == 1


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidArgument, match=r"file/out cannot be written: .*exists"):
        checkpoint.save({"x": torch.ones(1)}, tmp_path / "file" / "out")


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: DirectFile, memory: memoryview, offset: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(DirectFile, "write_from", full)
    with pytest.raises(NoCapacity, match="is full"):
        checkpoint.save(random_weights(), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_it_has_no_name_before_it_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    write = DirectFile.write_from

    def look(file: DirectFile, memory: memoryview, offset: int) -> None:
        write(file, memory, offset)
        seen.extend(path.name for path in tmp_path.iterdir())

    monkeypatch.setattr(DirectFile, "write_from", look)
    checkpoint.save(random_weights(), tmp_path / "out")
    (name,) = seen
    assert name.startswith(".out.incoming-")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
