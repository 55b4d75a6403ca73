from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sllm.checkpoint.format.dtypes import tensor_bytes
from sllm.checkpoint.format.layout import plan_layout
from sllm.checkpoint.format.safetensors_header import TensorHeader
from sllm.checkpoint.importing import chunk_plan
from sllm.checkpoint.importing.chunk_plan import plan_chunks, runs

CHUNK = 8192

described = st.lists(
    st.tuples(st.sampled_from(["F32", "BF16", "I8", "F64"]), st.integers(0, 9000)), min_size=1
)


def headers(tensors: list[tuple[str, int]]) -> list[TensorHeader]:
    """Of tensors side by side in two files."""
    ends = [8, 8]
    found = []
    for number, (dtype, count) in enumerate(tensors):
        size = tensor_bytes(dtype, (count,))
        file = number % 2
        path = Path(f"{file}.safetensors")
        found.append(TensorHeader(f"t.{number}", dtype, (count,), path, ends[file], size))
        ends[file] += size
    return found


@given(described, st.sampled_from([None, "F32", "BF16"]), st.sampled_from([64, 1000, 1 << 20]))
def test_every_byte_has_one_place(
    tensors: list[tuple[str, int]], dtype: str | None, piece_bytes: int
) -> None:
    layout = plan_layout(headers(tensors), dtype, partition_bytes=40_000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunk_plan, "PIECE_BYTES", piece_bytes)
        chunks = list(plan_chunks(layout, CHUNK))
    for source, entry in zip(layout.sources, layout.tensors, strict=True):
        place, start = entry.offset, source.offset
        for chunk in chunks:
            for piece in chunk.pieces:
                if chunk.partition == entry.partition and piece.tensor is source:
                    assert (chunk.offset + piece.offset, piece.start) == (place, start)
                    assert piece.offset + piece.chunk_size <= chunk.size
                    assert piece.size <= piece_bytes
                    place, start = place + piece.chunk_size, piece.end
        assert (place, start) == (entry.offset + entry.size, source.offset + source.size)
    assert sum(chunk.size for chunk in chunks) == layout.size_bytes
    assert [
        len({c.index for c in chunks if c.partition == p})
        for p, _ in enumerate(layout.partition_sizes)
    ] == list(layout.chunk_counts(CHUNK))


@given(described)
def test_small_neighbours_are_read_at_once(tensors: list[tuple[str, int]]) -> None:
    for chunk in plan_chunks(plan_layout(headers(tensors), None), 1 << 20):
        found = list(runs(chunk.pieces))
        assert sorted(map(id, chunk.pieces)) == sorted(id(piece) for run in found for piece in run)
        assert len(found) <= 2
