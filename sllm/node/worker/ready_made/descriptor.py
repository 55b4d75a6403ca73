"""oneDNN's descriptions of blocks, checked: it takes them at their word.

What it does with one that lies is to read and write wherever that says. A description that comes
with a checkpoint is therefore made once more, of the weight's shape and of the sizes of blocks
that it names, and has to be the same to the last byte (`dnnl_memory_desc` in oneDNN's
src/common/memory_desc.hpp). So there is nothing in it that oneDNN could not have written itself.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Final

_DIMENSIONS: Final = 2
_SLOTS: Final = 12
"""Numbers in each array, of which unused ones are 0."""
_ARRAY: Final = struct.Struct(f"={_SLOTS}q")
_COUNT: Final = struct.Struct("=i")
_SIZES_AT: Final = 8
_PADDED_AT: Final = 112
_STRIDES_AT: Final = 320
_LEVELS_AT: Final = 416
_BLOCKS_AT: Final = 424
_AXES_AT: Final = 520
_END: Final = _AXES_AT + _ARRAY.size
_MAX_BLOCK: Final = 256


@dataclass(frozen=True, slots=True)
class _Blocking:
    """How elements lie within a block, from the outer level to the inner one."""

    sizes: tuple[int, ...]
    axes: tuple[int, ...]
    """Which dimension each level divides."""

    def along(self, axis: int) -> int:
        """Elements of one block along a dimension."""
        return prod(size for size, own in zip(self.sizes, self.axes, strict=True) if own == axis)


def is_sound(
    descriptor: bytes, shape: Sequence[int], known: bytes, known_shape: Sequence[int]
) -> bool:
    """Whether a description is one of dense blocks of a weight, and of nothing else.

    Args:
        descriptor: what is to be checked.
        shape: of its weight, two positive numbers.
        known: what oneDNN has described itself in this process, with the same dtype.
        known_shape: of that one's weight.
    """
    return _is_made_of(known, known_shape, known) and _is_made_of(descriptor, shape, known)


def block_bytes(descriptor: bytes, itemsize: int) -> int:
    """Bytes of all blocks that a sound description tells of."""
    rows, columns, *_ = _ARRAY.unpack_from(descriptor, _PADDED_AT)
    return int(rows * columns * itemsize)


def _is_made_of(descriptor: bytes, shape: Sequence[int], known: bytes) -> bool:
    if len(descriptor) != len(known) or len(known) < _END:
        return False
    blocking = _blocking(descriptor)
    return blocking is not None and descriptor in _written(shape, blocking, known)


def _blocking(descriptor: bytes) -> _Blocking | None:
    (levels,) = _COUNT.unpack_from(descriptor, _LEVELS_AT)
    if not 0 <= levels <= _SLOTS:
        return None
    sizes = _ARRAY.unpack_from(descriptor, _BLOCKS_AT)[:levels]
    axes = _ARRAY.unpack_from(descriptor, _AXES_AT)[:levels]
    sound = all(0 < size <= _MAX_BLOCK for size in sizes) and prod(sizes) <= _MAX_BLOCK**2
    return _Blocking(sizes, axes) if sound and set(axes) <= set(range(_DIMENSIONS)) else None


def _written(shape: Sequence[int], blocking: _Blocking, known: bytes) -> Iterator[bytes]:
    """As oneDNN writes it, with either dimension as the outer one."""
    blocks = [blocking.along(axis) for axis in range(_DIMENSIONS)]
    counts = [-(-size // block) for size, block in zip(shape, blocks, strict=True)]
    padded = [count * block for count, block in zip(counts, blocks, strict=True)]
    inner = prod(blocks)
    for strides in ((counts[1] * inner, inner), (inner, counts[0] * inner)):
        made = bytearray(known)
        _COUNT.pack_into(made, _LEVELS_AT, len(blocking.sizes))
        for place, numbers in (
            (_SIZES_AT, shape),
            (_PADDED_AT, padded),
            (_STRIDES_AT, strides),
            (_BLOCKS_AT, blocking.sizes),
            (_AXES_AT, blocking.axes),
        ):
            _ARRAY.pack_into(made, place, *numbers, *[0] * (_SLOTS - len(numbers)))
        yield bytes(made)
