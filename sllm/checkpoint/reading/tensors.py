"""Tensors over a checkpoint's bytes in memory, without a copy. Needs torch."""

from collections.abc import Iterable, Sequence

import torch

from sllm.checkpoint.format.manifest import TensorEntry
from sllm.checkpoint.format.safetensors_header import TensorHeader
from sllm.errors import UnsupportedModel

_TORCH = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F4": torch.float4_e2m1fn_x2,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
}


TORCH_NAMES = {dtype: name for name, dtype in _TORCH.items()}
"""The safetensors name of every dtype of torch that has one."""


def tensors_over(
    tensors: Iterable[TensorEntry], buffers: Sequence[memoryview]
) -> dict[str, torch.Tensor]:
    """A checkpoint's tensors by name, in the order given.

    Args:
        tensors: what lies where.
        buffers: for each partition, its bytes, writable. The tensors keep them alive. Tied
            tensors share memory.

    Raises:
        UnsupportedModel: torch has no dtype for a tensor.
    """
    return {entry.name: tensor_over(entry, buffers[entry.partition]) for entry in tensors}


def tensors_within(
    tensors: Iterable[TensorEntry], partitions: Sequence[torch.Tensor]
) -> dict[str, torch.Tensor]:
    """As `tensors_over`, all in one storage for each partition, so that neighbours may be joined.

    Saving one of them by itself saves the partition.

    Args:
        tensors: what lies where.
        partitions: their bytes; uint8, on any device.

    Raises:
        UnsupportedModel: torch has no dtype for a tensor.
    """
    return {
        entry.name: _shaped(
            entry, partitions[entry.partition][entry.offset : entry.offset + entry.size]
        )
        for entry in tensors
    }


def tensor_over(entry: TensorEntry, buffer: memoryview) -> torch.Tensor:
    """One tensor over the bytes of its partition; one that begins between elements is copied.

    Raises:
        UnsupportedModel: torch has no dtype or no such shape for it.
    """
    raw = torch.empty(0, dtype=torch.uint8)
    if entry.size:
        raw = torch.frombuffer(buffer, dtype=torch.uint8, count=entry.size, offset=entry.offset)
    return _shaped(entry, raw)


def _shaped(entry: TensorEntry, raw: torch.Tensor) -> torch.Tensor:
    dtype, shape = torch_form(entry)
    if not entry.size:
        return _without_elements(entry, dtype, shape).to(raw.device)
    if raw.data_ptr() % dtype.itemsize:
        raw = raw.clone()
    return raw.view(dtype).reshape(shape)


def _without_elements(
    entry: TensorEntry, dtype: torch.dtype, shape: tuple[int, ...]
) -> torch.Tensor:
    try:
        return torch.empty(shape, dtype=dtype)
    except (RuntimeError, TypeError) as error:  # it multiplies the other dimensions all the same
        raise UnsupportedModel(
            f"tensor {entry.name!r} has the shape {list(shape)}, which torch cannot hold"
        ) from error


def torch_form(entry: TensorEntry | TensorHeader) -> tuple[torch.dtype, tuple[int, ...]]:
    """The dtype and shape that torch has for a tensor: two F4 of the last dimension are one.

    Raises:
        UnsupportedModel: it has none.
    """
    dtype = _TORCH.get(entry.dtype)
    if dtype is None:
        raise UnsupportedModel(f"tensor {entry.name!r} is {entry.dtype}, which torch does not know")
    if entry.dtype != "F4":
        return dtype, entry.shape
    if not entry.shape or entry.shape[-1] % 2:
        raise UnsupportedModel(
            f"tensor {entry.name!r} is F4 of shape {list(entry.shape)}; torch packs F4 in pairs, "
            "and needs an even last dimension"
        )
    return dtype, (*entry.shape[:-1], entry.shape[-1] // 2)
