from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from sllm.checkpoint.format.dtypes import tensor_bytes
from sllm.checkpoint.format.layout import first_use, plan_layout
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
