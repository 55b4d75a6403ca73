"""In which order chunks are read, by what is known of a model's use of them."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sllm.checkpoint.format.manifest import (
    FileEntry,
    Manifest,
    PartitionEntry,
    TensorEntry,
    make_manifest,
)
from sllm.node.tiers import first_use
from sllm.node.tiers.first_use import FirstUse, chunk_order

CHUNK = 4096


def manifest(*partitions: tuple[int, ...]) -> Manifest:
    """A checkpoint of tensors of so many bytes in each partition."""
    tensors: list[TensorEntry] = []
    entries: list[PartitionEntry] = []
    for number, sizes in enumerate(partitions):
        offset = 0
        for size in sizes:
            name = f"t{len(tensors)}"
            tensors.append(TensorEntry(name, "U8", (size,), number, offset, size))
            offset += size
        whole = max(1, -(-offset // CHUNK))
        digests = ("0" * 32,) * whole
        entries.append(PartitionEntry(f"p{number}", whole * CHUNK, CHUNK, digests))
    return make_manifest(tensors, entries, [FileEntry("config.json", 2, "0" * 32)])


def test_what_has_not_run_is_read_as_it_lies_and_used_when_it_is_whole() -> None:
    order = chunk_order(manifest((3 * CHUNK,), (CHUNK,)), None)
    assert order.chunks == (0, 1, 2, 3)
    assert order.at_once == {0, 1, 2, 3}


def test_chunks_come_in_the_order_of_their_tensors_over_all_partitions() -> None:
    described = manifest((CHUNK, 2 * CHUNK), (CHUNK, CHUNK))
    order = chunk_order(described, FirstUse((3, 1, 0, 2), at_once=1))
    assert order.chunks == (4, 1, 2, 0, 3)
    assert order.at_once == {4}


def test_tensors_that_share_a_chunk_have_it_come_with_the_first_of_them() -> None:
    order = chunk_order(manifest((100, CHUNK, 100, 0)), FirstUse((3, 2, 1, 0), at_once=2))
    assert order.chunks == (1, 0)
    assert order.at_once == {1}


@given(st.lists(st.integers(0, 3 * CHUNK), min_size=1, max_size=8), st.data())
def test_each_chunk_comes_once(sizes: list[int], data: st.DataObject) -> None:
    described = manifest(tuple(sizes))
    tensors = data.draw(st.permutations(range(len(sizes))))
    use = FirstUse(tuple(tensors), data.draw(st.integers(0, len(sizes))))
    first_use.check(use, described)
    order = chunk_order(described, use)
    assert sorted(order.chunks) == list(range(described.partitions[0].chunk_count))
    assert set(order.chunks[: len(order.at_once)]) == order.at_once
    assert chunk_order(described, use.never_early()).chunks == order.chunks


def test_it_is_kept_beside_a_checkpoint(tmp_path: Path) -> None:
    described, use = manifest((10, 20, 30)), FirstUse((2, 0, 1), 1)
    assert first_use.read(tmp_path, described) is None
    first_use.write(tmp_path, use)
    assert first_use.read(tmp_path, described) == use


@pytest.mark.parametrize(
    "kept",
    [
        "",
        "[]",
        "{}",
        '{"tensors": [0, 1], "at_once": 0}',
        '{"tensors": [0, 1, 1], "at_once": 0}',
        '{"tensors": [0, 1, "2"], "at_once": 0}',
        '{"tensors": [0, 1, 2], "at_once": 4}',
        '{"tensors": [0, 1, 2], "at_once": null}',
        '{"tensors": [0, 1, 2], "at_once": 1.5}',
        '{"tensors": [0, 1.0, 2], "at_once": 0}',
        "[" * 100_000,
    ],
)
def test_what_is_of_no_use_is_seen_anew(tmp_path: Path, kept: str) -> None:
    (tmp_path / ".first-use.json").write_text(kept)
    assert first_use.read(tmp_path, manifest((10, 20, 30))) is None
