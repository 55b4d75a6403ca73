"""Which tensor comes where in a checkpoint, planned before a byte moves."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import TypeVar

from sllm.checkpoint.format.dtypes import CONVERTIBLE, tensor_bytes
from sllm.checkpoint.format.experts import expert_part
from sllm.checkpoint.format.manifest import BLOCK_BYTES, TENSOR_ALIGNMENT, TensorEntry
from sllm.checkpoint.format.safetensors_header import TensorHeader

PARTITION_BYTES = 8 << 30
"""A partition ends before it would grow past this, unless one tensor is larger."""

_NUMBER = re.compile(r"(\d+)")
_EMBEDDING = re.compile(r"embed|\bwte\b|\bwpe\b")
_Tensor = TypeVar("_Tensor", TensorHeader, TensorEntry)


@dataclass(frozen=True, slots=True)
class Layout:
    """Where every tensor goes."""

    sources: tuple[TensorHeader, ...]
    """In order of first use."""
    tensors: tuple[TensorEntry, ...]
    """What becomes of each of `sources`."""
    partition_sizes: tuple[int, ...]
    """Bytes, padding included."""

    @property
    def size_bytes(self) -> int:
        """Bytes of all partitions."""
        return sum(self.partition_sizes)

    def chunk_counts(self, chunk_bytes: int) -> tuple[int, ...]:
        """Chunks of every partition."""
        return tuple(-(-size // chunk_bytes) for size in self.partition_sizes)


def plan_layout(
    tensors: Sequence[TensorHeader], dtype: str | None, partition_bytes: int = PARTITION_BYTES
) -> Layout:
    """Lays tensors side by side in order of first use.

    Args:
        tensors: those of the source.
        dtype: what plain floating tensors are converted to; None: nothing.
        partition_bytes: bound of a partition of several tensors.
    """
    ordered = sorted(tensors, key=lambda tensor: first_use(tensor.name))
    entries: list[TensorEntry] = []
    ends = [0]
    for block in _blocks(ordered):
        placed = _place(block, dtype, len(ends) - 1, _aligned(ends[-1], TENSOR_ALIGNMENT))
        # One that is larger than a partition may be has one of its own, and is not cut.
        if placed[0].offset and _end(placed) > partition_bytes:
            ends.append(0)
            placed = _place(block, dtype, len(ends) - 1, 0)
        ends[-1] = _end(placed)
        entries += placed
    sizes = tuple(max(_aligned(end, BLOCK_BYTES), BLOCK_BYTES) for end in ends)
    return Layout(tuple(ordered), tuple(entries), sizes)


def first_use(name: str) -> tuple[int, list[str | int]]:
    """Sorts names as a forward pass uses them: embeddings, numbered layers in order, the rest.

    Experts are used as one, so that a projection of all of them comes before the next projection.
    """
    part = expert_part(name)
    used = f"{part.whole}.{part.expert}.{part.projection}" if part else name
    parts: list[str | int] = [
        int(part) if index % 2 else part for index, part in enumerate(_NUMBER.split(used))
    ]
    if _EMBEDDING.search(name):
        return 0, parts
    return (1 if len(parts) > 1 else 2), parts


def lie_as_used(tensors: Sequence[TensorHeader]) -> bool:
    """Whether experts lie in the files as a layout would have them: side by side, in order."""
    for block in _blocks(sorted(tensors, key=lambda tensor: first_use(tensor.name))):
        for one, other in pairwise(block):
            if one.file != other.file or one.offset + one.size != other.offset:
                return False
    return True


def apart_bytes(tensors: Sequence[TensorEntry]) -> int:
    """Bytes of the experts that do not lie so in a checkpoint: whoever uses them copies them."""
    ordered = sorted(tensors, key=lambda tensor: first_use(tensor.name))
    return sum(
        sum(one.size for one in block) for block in _blocks(ordered) if not _side_by_side(block)
    )


def _side_by_side(block: Sequence[TensorEntry]) -> bool:
    return all(
        (one.partition, one.offset + one.size) == (other.partition, other.offset)
        for one, other in pairwise(block)
    )


def _blocks(ordered: Sequence[_Tensor]) -> Iterator[list[_Tensor]]:
    """Tensors that stay together: those that are used as one, and each other by itself."""

    def used_as(tensor: _Tensor) -> str:
        part = expert_part(tensor.name)
        return part.whole if part else tensor.name

    return (list(block) for _, block in groupby(ordered, used_as))


def _place(
    block: Sequence[TensorHeader], dtype: str | None, partition: int, offset: int
) -> list[TensorEntry]:
    placed = []
    for tensor in block:
        served = dtype if dtype and tensor.dtype in CONVERTIBLE else tensor.dtype
        size = tensor_bytes(served, tensor.shape)
        placed.append(TensorEntry(tensor.name, served, tensor.shape, partition, offset, size))
        offset = _aligned(offset + size, TENSOR_ALIGNMENT)
    return placed


def _end(placed: Sequence[TensorEntry]) -> int:
    return placed[-1].offset + placed[-1].size


def _aligned(value: int, alignment: int) -> int:
    return -(-value // alignment) * alignment
