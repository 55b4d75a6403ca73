"""Layers divided among nodes, and chunks read in the order that this wants."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from sllm.checkpoint.format.manifest import Manifest, PartitionEntry, TensorEntry
from sllm.node.tiers import layers
from sllm.node.tiers.first_use import ChunkOrder

SIZES = st.lists(st.integers(1, 1000), min_size=1, max_size=40)
SHARES = st.lists(st.floats(0.01, 0.3), min_size=1, max_size=3)
CHUNK = 100


@given(SIZES, SHARES)
def test_every_layer_but_the_first_ones_has_one_lender(
    sizes: list[int], shares: list[float]
) -> None:
    found = layers.ranges(sizes, shares)
    assert len(found) == len(shares)
    assert all(one.stop == other.start for one, other in pairwise(found))
    assert found[-1].stop == len(sizes)
    assert found[0].start >= 0


@given(SIZES, SHARES)
def test_each_has_its_share_but_for_a_part_of_a_layer(
    sizes: list[int], shares: list[float]
) -> None:
    for one, share in zip(layers.ranges(sizes, shares), shares, strict=True):
        assert abs(sum(sizes[n] for n in one) - share * sum(sizes)) <= max(sizes) + 1e-6


def manifest(names: list[str], size: int) -> Manifest:
    entries = [TensorEntry(name, "U8", (size,), 0, n * size, size) for n, name in enumerate(names)]
    total = size * len(names)
    return Manifest(1, tuple(entries), (PartitionEntry("p", total, CHUNK, ()),), (), "0" * 32)


def test_a_layer_is_told_by_its_tensors_names() -> None:
    names = ["embed", "model.layers.0.a", "model.layers.0.b", "model.layers.1.a", "norm"]
    assert layers.layer_bytes(manifest(names, 10)) == (20, 10)
    assert layers.layer_bytes(manifest(["h.0.a"], 10)) == ()
    assert layers.layer_bytes(manifest(["layers.0.a", "layers.2.a"], 10)) == ()


@given(st.lists(st.booleans(), min_size=1, max_size=12), st.integers(1, 350))
def test_chunks_of_wanted_layers_come_first_and_none_is_left_out(
    wanted: list[bool], size: int
) -> None:
    made = manifest([f"layers.{n}.weight" for n in range(len(wanted))], size)
    count = made.partitions[0].chunk_count
    order = ChunkOrder(tuple(reversed(range(count))), frozenset({count - 1}))
    found = layers.first(made, order, lambda layer: layer is not None and wanted[layer])
    assert sorted(found.chunks) == list(range(count))
    assert found.at_once == order.at_once
    needed = {
        chunk
        for n, is_wanted in enumerate(wanted)
        for chunk in range(n * size // CHUNK, -(-(n + 1) * size // CHUNK))
        if is_wanted
    } | order.at_once
    assert set(found.chunks[: len(needed)]) == needed
