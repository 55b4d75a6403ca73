"""Floating-point conversion of raw tensor bytes, piece by piece, rounding to nearest even."""

from typing import Any

import numpy as np
import numpy.typing as npt

_NUMPY: dict[str, type[np.floating[Any]]] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
}
_BF16_NAN = np.uint16(0x7FC0)


def convert(piece: memoryview, source: str, target: str) -> memoryview:
    """The elements in `piece`, of dtype `source`, as those of dtype `target`.

    Args:
        piece: whole elements.
        source: a name in `dtypes.CONVERTIBLE`.
        target: another one.
    """
    values = _from_bf16(piece) if source == "BF16" else np.frombuffer(piece, _NUMPY[source])
    if source == "F64":  # torch rounds twice as well
        values = _cast(values, np.float32)
    converted = _to_bf16(values) if target == "BF16" else _cast(values, _NUMPY[target])
    return converted.view(np.uint8).data


def _cast(values: npt.NDArray[Any], dtype: type[np.floating[Any]]) -> npt.NDArray[Any]:
    with np.errstate(over="ignore", invalid="ignore"):  # what does not fit becomes infinite
        return values.astype(dtype)


def _from_bf16(piece: memoryview) -> npt.NDArray[np.float32]:
    """bfloat16 is the upper half of float32."""
    return (np.frombuffer(piece, np.uint16).astype(np.uint32) << 16).view(np.float32)


def _to_bf16(values: npt.NDArray[Any]) -> npt.NDArray[np.uint16]:
    """Adds half of the lowest kept bit, or just less if that bit is even, and cuts off."""
    floats = _cast(values, np.float32)
    bits = floats.view(np.uint32)
    half = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    rounded = ((bits + half) >> np.uint32(16)).astype(np.uint16)
    return np.where(np.isnan(floats), _BF16_NAN, rounded)
