import json
import os
import tempfile
from itertools import count
from pathlib import Path

import pytest
import torch
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from sllm.checkpoint.format.manifest_file import read_manifest
from sllm.checkpoint.importing import chunk_plan
from sllm.checkpoint.importing.import_plan import plan_import
from sllm.checkpoint.sources.sources import LocalSource, inspect
from sllm.errors import Cancelled, CheckpointCorrupt, InvalidArgument
from sllm.node.tiers.pool import Pool
from tests.checkpoint.checkpoints import (
    assert_same,
    import_model,
    random_weights,
    tensors_in_pool,
    tensors_on_disk,
    write_model,
)
from tests.checkpoint.plans import CHUNK, run_import
from tests.properties import examples

DTYPES = [
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.float64,
    torch.int64,
    torch.int8,
    torch.bool,
    torch.complex64,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
]


def tensor_of(dtype: torch.dtype, shape: list[int], seed: int) -> torch.Tensor:
    size = int(torch.tensor(shape).prod()) * dtype.itemsize if shape else dtype.itemsize
    raw = torch.randint(0, 2, (size,), dtype=torch.uint8, generator=torch.manual_seed(seed))
    return raw.view(dtype).reshape(shape)


shapes = st.lists(st.integers(0, 70), max_size=3)
tensors = st.lists(st.tuples(st.sampled_from(DTYPES), shapes), min_size=1, max_size=6)


@examples(40)
@given(tensors)
def test_tensors_of_any_dtype_and_shape_come_back_bit_by_bit(
    described: list[tuple[torch.dtype, list[int]]],
) -> None:
    weights = {f"t.{i}": tensor_of(*one, seed=i) for i, one in enumerate(described)}
    with tempfile.TemporaryDirectory() as directory:
        source = write_model(Path(directory) / "source", weights)
        manifest = import_model(source, Path(directory) / "out")
        assert read_manifest(Path(directory) / "out") == manifest
        assert_same(tensors_on_disk(manifest, Path(directory) / "out"), weights)


@pytest.mark.parametrize("size", [CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 5 * CHUNK - 64])
def test_tensors_may_end_anywhere_in_a_chunk(tmp_path: Path, size: int) -> None:
    weights = {"a.1": tensor_of(torch.uint8, [size], 1), "a.2": tensor_of(torch.uint8, [999], 2)}
    manifest = import_model(write_model(tmp_path / "source", weights), tmp_path / "out")
    assert_same(tensors_on_disk(manifest, tmp_path / "out"), weights)


def test_several_partitions_hold_the_same(tmp_path: Path) -> None:
    files = inspect(LocalSource(write_model(tmp_path / "source")))
    manifest = run_import(plan_import(files, None, partition_bytes=20_000), tmp_path / "out")
    assert len(manifest.partitions) == 4
    assert_same(tensors_on_disk(manifest, tmp_path / "out"), random_weights())


def test_chunks_carry_their_digests(tmp_path: Path) -> None:
    manifest = import_model(write_model(tmp_path / "source"), tmp_path / "out")
    (entry,) = manifest.partitions
    content = (tmp_path / "out" / entry.file).read_bytes()
    chunks = [content[start : start + CHUNK] for start in range(0, len(content), CHUNK)]
    assert list(entry.digests) == [xxhash.xxh3_128_hexdigest(chunk) for chunk in chunks]
    assert len(chunks) > 3


def test_the_same_content_has_the_same_digest_wherever_it_lies(tmp_path: Path) -> None:
    digests = [
        import_model(write_model(tmp_path / f"s{i}", seed=seed), tmp_path / f"o{i}").digest
        for i, seed in enumerate([0, 0, 1])
    ]
    assert digests[0] == digests[1] != digests[2]


def test_small_files_are_carried(tmp_path: Path) -> None:
    source = write_model(tmp_path / "source")
    (source / "chat_template.jinja").write_text("{{ messages }}")
    import_model(source, tmp_path / "out")
    for name in ["config.json", "tokenizer.json", "chat_template.jinja"]:
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_weights_are_converted_once_and_the_configuration_says_so(
    tmp_path: Path, dtype: str
) -> None:
    weights = random_weights() | {"steps.1": torch.arange(2000), "wide.1": torch.randn(99).double()}
    source = write_model(tmp_path / "source", weights)
    config = {"torch_dtype": "float32", "text_config": {"dtype": "float32", "layers": [1]}}
    (source / "config.json").write_text(json.dumps(config))
    manifest = import_model(source, tmp_path / "out", dtype)
    target = getattr(torch, dtype)
    expected = {n: t.to(target) if t.is_floating_point() else t for n, t in weights.items()}
    assert_same(tensors_on_disk(manifest, tmp_path / "out"), expected)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written == {"torch_dtype": dtype, "text_config": {"dtype": dtype, "layers": [1]}}


def test_a_configuration_without_a_dtype_gets_one(tmp_path: Path) -> None:
    source = write_model(tmp_path / "source")
    (source / "config.json").write_text("{}")
    import_model(source, tmp_path / "out", "float16")
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {"dtype": "float16"}


def test_other_dtypes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="float32, bfloat16, float16"):
        import_model(write_model(tmp_path / "source"), tmp_path / "out", "int8")


def test_chunks_may_be_left_in_the_pool(tmp_path: Path) -> None:
    plan = plan_import(inspect(LocalSource(write_model(tmp_path / "source"))), None)
    pool = Pool(16 * CHUNK, CHUNK)
    places = pool.try_allocate(sum(plan.layout.chunk_counts(CHUNK)))
    assert places is not None
    manifest = run_import(
        plan, tmp_path / "out", memory=lambda partition, index: pool.view(places[index])
    )
    assert_same(tensors_in_pool(manifest, pool, (places,)), random_weights())
    assert_same(tensors_on_disk(manifest, tmp_path / "out"), random_weights())
    pool.close()


def test_progress_rises_to_the_total(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk_plan, "PIECE_BYTES", 1024)
    plan = plan_import(inspect(LocalSource(write_model(tmp_path / "source"))), None)
    seen: list[tuple[int, int]] = []
    run_import(plan, tmp_path / "out", lambda loaded, total: seen.append((loaded, total)))
    assert len(seen) > 40
    assert seen == sorted(seen)
    assert seen[-1] == (plan.files.size_bytes, plan.files.size_bytes)


def test_a_cancelled_import_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk_plan, "PIECE_BYTES", 1024)
    plan = plan_import(inspect(LocalSource(write_model(tmp_path / "source"))), None)
    asked = count()
    with pytest.raises(Cancelled):
        run_import(plan, tmp_path / "out", cancelled=lambda: next(asked) >= 30)
    assert next(asked) <= 40, "threads went on"
    assert not (tmp_path / "out").exists()


def test_a_source_that_shrinks_is_corrupt_at_the_offset(tmp_path: Path) -> None:
    source = write_model(tmp_path / "source")
    plan = plan_import(inspect(LocalSource(source)), None)
    os.truncate(source / "model.safetensors", 20_000)
    with pytest.raises(CheckpointCorrupt) as caught:
        run_import(plan, tmp_path / "out")
    path = str(source / "model.safetensors")
    assert caught.value.metadata["file"] == path
    assert int(caught.value.metadata["offset"]) >= 20_000
    assert not (tmp_path / "out").exists()


def test_a_source_that_changes_meanwhile_is_refused(tmp_path: Path) -> None:
    source = write_model(tmp_path / "source")
    plan = plan_import(inspect(LocalSource(source)), None)
    write_model(source, seed=1)
    with pytest.raises(CheckpointCorrupt, match="changed while"):
        run_import(plan, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_safetensors_reads_is_what_is_imported(tmp_path: Path) -> None:
    source = write_model(tmp_path / "source")
    manifest = import_model(source, tmp_path / "out")
    expected = load_file(source / "model.safetensors")
    assert_same(tensors_on_disk(manifest, tmp_path / "out"), expected)
