from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sllm.checkpoint.format.dtypes import tensor_bytes
from sllm.checkpoint.format.experts import expert_part
from sllm.checkpoint.format.layout import first_use, lie_as_used, plan_layout
from sllm.checkpoint.format.manifest import BLOCK_BYTES, TENSOR_ALIGNMENT
from sllm.checkpoint.format.safetensors_header import TensorHeader


def header(name: str, shape: tuple[int, ...], dtype: str = "F32") -> TensorHeader:
    return TensorHeader(name, dtype, shape, Path("x"), 0, tensor_bytes(dtype, shape))


def test_tensors_are_ordered_as_a_forward_pass_uses_them() -> None:
    names = [
        "model.embed_tokens.weight",
        "model.layers.0.mlp.weight",
        "model.layers.2.mlp.weight",
        "model.layers.10.mlp.weight",
        "lm_head.weight",
        "model.norm.weight",
    ]
    shuffled = [names[index] for index in (4, 2, 0, 5, 3, 1)]
    assert sorted(shuffled, key=first_use) == names
    assert sorted(["h.0.attn", "ln_f", "wte.weight", "wpe.weight"], key=first_use) == [
        "wpe.weight",
        "wte.weight",
        "h.0.attn",
        "ln_f",
    ]


def test_only_plain_floats_are_converted() -> None:
    tensors = [header("a", (3,)), header("b", (3,), "I64"), header("c", (3,), "F8_E4M3")]
    found = {entry.name: entry.dtype for entry in plan_layout(tensors, "BF16").tensors}
    assert found == {"a": "BF16", "b": "I64", "c": "F8_E4M3"}


def test_nothing_at_all_still_makes_a_partition() -> None:
    assert plan_layout([], None).partition_sizes == (BLOCK_BYTES,)
    assert plan_layout([header("empty", (0,))], None).partition_sizes == (BLOCK_BYTES,)


@given(st.lists(st.integers(0, 3000), max_size=30), st.integers(1, 20000))
def test_partitions_are_bounded_and_tensors_aligned_without_overlap(
    sizes: list[int], bound: int
) -> None:
    layout = plan_layout([header(f"t.{i}", (n,), "U8") for i, n in enumerate(sizes)], None, bound)
    ends = [0] * len(layout.partition_sizes)
    for entry in layout.tensors:
        assert entry.offset % TENSOR_ALIGNMENT == 0
        assert entry.offset >= ends[entry.partition]
        assert entry.offset == 0 or entry.offset + entry.size <= bound
        ends[entry.partition] = entry.offset + entry.size
    for end, size in zip(ends, layout.partition_sizes, strict=True):
        assert end <= size < end + BLOCK_BYTES or size == BLOCK_BYTES
        assert size % BLOCK_BYTES == 0
    assert [source.name for source in layout.sources] == [entry.name for entry in layout.tensors]


PROJECTIONS = {
    "model.layers.{}.mlp.experts.{}.{}.weight": ("gate_proj", "up_proj", "down_proj"),
    "model.layers.{}.block_sparse_moe.experts.{}.{}.weight": ("w1", "w3", "w2"),
    "model.layers.{}.feed_forward.experts.{}.{}.weight": ("fc1", "fc3", "fc2"),
}
"""How families name the experts' tensors: the two halves of the first projection, the second."""


def experts(
    form: str, count: int, layers: int = 2, shape: tuple[int, ...] = (4, 16)
) -> list[TensorHeader]:
    return [
        header(form.format(layer, expert, projection), shape)
        for layer in range(layers)
        for expert in range(count)
        for projection in sorted(PROJECTIONS[form])
    ]


@pytest.mark.parametrize("form", PROJECTIONS)
def test_experts_lie_as_they_are_used(form: str) -> None:
    """Gate and up of each in turn, and after them all the down projections."""
    first, second, down = PROJECTIONS[form]
    router = header("model.layers.0.router.weight", (3,))
    layout = plan_layout([*reversed(experts(form, 12)), router], None)
    of_first_layer = [
        entry for entry in layout.tensors if form.format(0, "", "")[:14] in entry.name
    ]
    found = [entry for entry in of_first_layer if entry.name != router.name]
    halves = [form.format(0, n, part) for n in range(12) for part in (first, second)]
    downs = [form.format(0, n, down) for n in range(12)]
    names = [entry.name for entry in found]
    assert names in (halves + downs, downs + halves)
    for block in (halves, downs):
        entries = [entry for entry in found if entry.name in block]
        for one, other in pairwise(entries):
            assert (one.partition, one.offset + one.size) == (other.partition, other.offset)


@given(st.integers(1, 12), st.integers(1, 40), st.integers(1, 20000))
def test_tensors_that_are_used_as_one_stay_in_one_partition(
    count: int, width: int, bound: int
) -> None:
    form = next(iter(PROJECTIONS))
    tensors = [*experts(form, count, shape=(4, width)), header("model.norm.weight", (999,))]
    layout = plan_layout(tensors, None, bound)
    places: dict[str, set[int]] = {}
    for entry in layout.tensors:
        part = expert_part(entry.name)
        places.setdefault(part.whole if part else entry.name, set()).add(entry.partition)
    assert all(len(partitions) == 1 for partitions in places.values())
    ends = [entry.offset + entry.size for entry in layout.tensors]
    assert all(
        end <= layout.partition_sizes[one.partition]
        for end, one in zip(ends, layout.tensors, strict=True)
    )


def test_it_is_known_whether_experts_lie_so_already() -> None:
    def files(names: Iterable[str]) -> list[TensorHeader]:
        return [
            TensorHeader(name, "F32", (16,), Path("x"), offset=64 * place, size=64)
            for place, name in enumerate(names)
        ]

    names = [tensor.name for tensor in experts(next(iter(PROJECTIONS)), 3)]
    assert not lie_as_used(files(names))
    assert lie_as_used(files(sorted(names, key=first_use)))
    assert lie_as_used(files(["model.layers.0.mlp.gate_proj.weight", "lm_head.weight"]))
    apart = files(sorted(names, key=first_use))
    apart[1] = replace(apart[1], file=Path("y"))
    assert not lie_as_used(apart)


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.mlp.shared_experts.gate_proj.weight",
        "model.layers.0.mlp.experts.gate_up_proj",
        "model.layers.3.mlp.gate.weight",
        "experts.weight",
    ],
)
def test_other_tensors_are_no_experts(name: str) -> None:
    assert expert_part(name) is None
