from hypothesis import given
from hypothesis import strategies as st

from sllm.checkpoint.format.manifest import Manifest, PartitionEntry, TensorEntry, make_manifest
from sllm.node.device.layout import ALIGNMENT, GRANULE, lay_out

CHUNK = 4096

partitions = st.lists(st.tuples(st.integers(1, 5 * CHUNK), st.integers(0, 3000)), max_size=6)


def manifest_of(sizes: list[tuple[int, int]]) -> Manifest:
    """Partitions of these sizes, each with one tensor from an offset to its end."""
    entries = [PartitionEntry(f"p{n}", size, CHUNK, ()) for n, (size, _) in enumerate(sizes)]
    tensors = [
        TensorEntry(f"t{n}", "U8", (size - lead,), n, lead, size - lead)
        for n, (size, lead) in enumerate(sizes)
        if lead < size
    ]
    return make_manifest(tensors, entries, [])


@given(partitions)
def test_partitions_do_not_overlap_and_are_within_the_allocation(
    sizes: list[tuple[int, int]],
) -> None:
    layout = lay_out(manifest_of(sizes))
    ends = [start + size for start, (size, _) in zip(layout.partitions, sizes, strict=True)]
    assert all(end <= start for end, start in zip(ends, layout.partitions[1:], strict=False))
    assert all(start >= 0 for start in layout.partitions)
    assert max(ends, default=0) <= layout.size_bytes
    assert layout.size_bytes % GRANULE == 0
    assert layout.size_bytes > 0


@given(partitions)
def test_the_first_tensor_of_every_partition_is_aligned(sizes: list[tuple[int, int]]) -> None:
    manifest = manifest_of(sizes)
    layout = lay_out(manifest)
    for tensor in manifest.tensors:
        assert (layout.partitions[tensor.partition] + tensor.offset) % ALIGNMENT == 0


@given(partitions)
def test_chunks_cover_every_partition_once(sizes: list[tuple[int, int]]) -> None:
    layout = lay_out(manifest_of(sizes))
    chunks = iter(layout.chunks)
    for start, (size, _) in zip(layout.partitions, sizes, strict=True):
        offset = 0
        while offset < size:
            chunk = next(chunks)
            assert chunk.offset == start + offset
            assert chunk.size == min(CHUNK, size - offset)
            offset += chunk.size
    assert next(chunks, None) is None
