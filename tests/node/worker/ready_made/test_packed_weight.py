"""Weights in oneDNN's blocks, in any memory, give what rows give."""

import gc
import mmap
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.functional import linear as by_rows

from sllm.checkpoint.format.form import WeightForm, read_form
from sllm.checkpoint.format.manifest_file import read_manifest
from sllm.checkpoint.reading.loading import load
from sllm.checkpoint.reading.verification import verify
from sllm.errors import CheckpointCorrupt, UnsupportedModel
from sllm.node.worker.ready_made.contents import ReadyMade, read, write
from sllm.node.worker.ready_made.joining import join
from sllm.node.worker.ready_made.packed_weight import (
    PackedLinear,
    PackedWeight,
    can_pack,
    is_packable,
    linear,
    pack,
)

CHUNK = 1 << 16
SHAPES = [(64, 32), (300, 70), (1, 128), (7, 3), (1000, 64)]
DTYPES = [
    torch.float32,
    pytest.param(
        torch.bfloat16,
        marks=pytest.mark.skipif(
            not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="no bfloat16 in oneDNN"
        ),
    ),
]

pytestmark = pytest.mark.skipif(not can_pack(), reason="torch has no oneDNN")


def weight_of(shape: tuple[int, int], dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def elsewhere(packed: PackedWeight) -> PackedWeight:
    """The same blocks in memory that has nothing to do with torch."""
    memory = mmap.mmap(-1, packed.blocks.numel())
    memory[:] = packed.blocks.numpy().tobytes()
    blocks = torch.frombuffer(memory, dtype=torch.uint8)
    return PackedWeight(packed.shape, packed.dtype, blocks, packed.descriptor)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rows", [0, 1, 2, 17, 130])
def test_products_are_those_of_rows(shape: tuple[int, int], dtype: torch.dtype, rows: int) -> None:
    weight, bias = weight_of(shape, dtype), weight_of((1, shape[0]), dtype)[0]
    layer = PackedLinear(elsewhere(pack(weight)), bias)
    gc.collect()  # what it was packed in is gone
    given = weight_of((rows, shape[1]), dtype, seed=1)
    expected = by_rows(given, weight, bias)
    torch.testing.assert_close(layer(given), expected)
    torch.testing.assert_close(layer(given[None]), expected[None])


def test_blocks_are_read_where_they_lie() -> None:
    moved = elsewhere(pack(weight_of((64, 32), torch.float32)))
    bound = moved.bind()
    moved.blocks.zero_()
    assert not linear(torch.ones(3, 32), bound, None).any()


def test_what_has_no_blocks_is_left_as_it_is() -> None:
    assert not is_packable(torch.ones(3))
    assert not is_packable(torch.ones(0, 3))
    assert not is_packable(torch.ones(2, 3, 4))
    assert not is_packable(torch.ones(2, 3, dtype=torch.float64))


def test_a_descriptor_of_something_else_is_refused() -> None:
    packed, larger = (pack(weight_of(shape, torch.float32)) for shape in ((64, 32), (128, 32)))
    for descriptor in (b"nonsense", larger.descriptor):
        with pytest.raises(RuntimeError, match=r"\(64, 32\)"):
            replace(packed, descriptor=descriptor).bind()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_descriptor_that_lies_is_never_given_to_onednn(dtype: torch.dtype) -> None:
    """It would read and write wherever that says: a packed checkpoint may come from anybody."""
    packed = pack(weight_of((300, 70), dtype))
    for place in range(len(packed.descriptor)):
        for changed in (0x01, 0x40, 0x80):
            lying = bytearray(packed.descriptor)
            lying[place] ^= changed
            with pytest.raises(RuntimeError, match=r"\(300, 70\)"):
                replace(packed, descriptor=bytes(lying)).bind()


def test_blocks_of_another_shape_are_refused() -> None:
    packed = pack(weight_of((64, 32), torch.float32))
    for other in (replace(packed, shape=(32, 64)), replace(packed, blocks=packed.blocks[:-1])):
        with pytest.raises(RuntimeError, match="weight of"):
            other.bind()


FORM = WeightForm("engine-1", "engine", made_of="0" * 32)


def ready() -> ReadyMade:
    packed = {"head": pack(weight_of((300, 70), torch.float32)), "up": pack(torch.ones(8, 8))}
    plain = {"norm": torch.arange(5.0), "scale": torch.tensor([2], dtype=torch.int64)}
    return ReadyMade(plain, packed, torch.float32, {"up": "layer.up.weight"})


def test_what_is_written_is_read(tmp_path: Path) -> None:
    written = ready()
    write(written, tmp_path / "made", CHUNK, FORM)
    found = read(tmp_path / "made", load(tmp_path / "made"))
    assert (found.dtype, dict(found.replaced)) == (written.dtype, dict(written.replaced))
    assert found.nbytes == written.nbytes
    for name, tensor in written.plain.items():
        assert torch.equal(found.plain[name], tensor)
    given = torch.randn(4, 70)
    expected = linear(given, written.packed["head"].bind(), None)
    assert torch.equal(linear(given, found.packed["head"].bind(), None), expected)


def test_its_description_is_part_of_its_content(tmp_path: Path) -> None:
    write(ready(), tmp_path / "made", CHUNK, FORM)
    names = {file.name for file in read_manifest(tmp_path / "made").files}
    assert names == {"form.json", "ready_made.json"}
    assert read_form(tmp_path / "made") == replace(FORM, dtype="float32")


def test_what_several_ranks_read_is_one_checkpoint(tmp_path: Path) -> None:
    form, parts = replace(FORM, ranks=2), [tmp_path / "made.rank-0", tmp_path / "made.rank-1"]
    written = [ready(), replace(ready(), plain={"norm": torch.arange(3.0)})]
    for rank, part in enumerate(parts):
        write(written[rank], part, CHUNK, form, rank)
    join(parts, tmp_path / "made")
    assert not any(part.exists() for part in parts)
    verify(tmp_path / "made")
    assert read_form(tmp_path / "made") == replace(form, dtype="float32")
    tensors = load(tmp_path / "made")
    for rank, one in enumerate(written):
        found = read(tmp_path / "made", tensors, rank)
        assert found.plain.keys() == one.plain.keys()
        assert torch.equal(found.plain["norm"], one.plain["norm"])
        assert found.packed.keys() == one.packed.keys()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b'{"version": 2}',
        b'{"version": 1, "dtype": "float32", "packed": [{}], "descriptors": []}',
        b'{"version": 1, "dtype": "nn", "packed": [], "descriptors": []}',
        b'{"version": 1, "dtype": "float32", "descriptors": [""], "packed": [{"name": "up", '
        b'"shape": [8, -8], "dtype": "float32", "descriptor": 0, "replaces": null}]}',
    ],
)
def test_a_description_of_something_else_is_corrupt(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "ready_made.json").write_bytes(content)
    with pytest.raises(CheckpointCorrupt, match=r"ready_made\.json"):
        read(tmp_path, {})


def test_no_tensor_takes_the_name_of_a_packed_one(tmp_path: Path) -> None:
    packed = {"up": pack(torch.ones(8, 8))}
    with pytest.raises(UnsupportedModel, match="packed:up"):
        write(
            ReadyMade({"packed:up": torch.ones(1)}, packed, torch.float32),
            tmp_path / "x",
            CHUNK,
            FORM,
        )
