"""The dtypes of safetensors, by the names that its format gives them.

Source: https://github.com/huggingface/safetensors, `safetensors/src/tensor.rs`, `Dtype`.
"""

from collections.abc import Sequence

BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "U16": 16,
    "I16": 16,
    "U32": 32,
    "I32": 32,
    "U64": 64,
    "I64": 64,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "F8_E4M3": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2": 8,
    "F8_E5M2FNUZ": 8,
    "F8_E8M0": 8,
    "F16": 16,
    "BF16": 16,
    "F32": 32,
    "F64": 64,
    "C64": 64,
}
"""Bits of one element of every dtype."""

CONVERTIBLE = frozenset({"F64", "F32", "F16", "BF16"})
"""Plain floating dtypes. Those of fewer bits belong to a quantisation and stay as they are."""

BY_TORCH_NAME = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
"""What a deployment may ask its weights to be converted to, by the names of torch."""


_MAX_BITS = (1 << 64) - 1


def tensor_bytes(dtype: str, shape: Sequence[int]) -> int:
    """Bytes that a contiguous tensor takes.

    Raises:
        ValueError: the dtype is unknown, the elements do not fill whole bytes, or their number
            has no 64 bits.
    """
    if dtype not in BITS:
        raise ValueError(f"unknown dtype {dtype!r}; known are {', '.join(BITS)}")
    bits = 1
    for factor in (*shape, BITS[dtype]):
        bits *= factor
        # Step by step, as the safetensors library does: [2**60, 2**60, 0] is refused, too.
        if bits > _MAX_BITS:
            raise ValueError(f"{dtype} of shape {list(shape)} is larger than any memory")
    if bits % 8:
        raise ValueError(f"{dtype} of shape {list(shape)} does not fill whole bytes")
    return bits // 8
