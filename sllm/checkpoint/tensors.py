"""Tensors over a checkpoint's mapped bytes, without a copy. The one file here that needs torch."""

from collections.abc import Sequence

import torch

from sllm.checkpoint.manifest import Manifest, TensorEntry
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


def tensors_over(manifest: Manifest, buffers: Sequence[memoryview]) -> dict[str, torch.Tensor]:
    """The checkpoint's tensors by name, in the manifest's order.

    Args:
        manifest: what lies where.
        buffers: for each partition, its bytes, writable. The tensors keep them alive. Tied
            tensors share memory.

    Raises:
        UnsupportedModel: torch has no dtype for a tensor.
    """
    return {entry.name: _tensor(entry, buffers[entry.partition]) for entry in manifest.tensors}


def _tensor(entry: TensorEntry, buffer: memoryview) -> torch.Tensor:
    dtype = _TORCH.get(entry.dtype)
    if dtype is None:
        raise UnsupportedModel(f"tensor {entry.name!r} is {entry.dtype}, which torch does not know")
    if not entry.size:
        return torch.empty(entry.shape, dtype=dtype)
    count = entry.size // dtype.itemsize
    flat = torch.frombuffer(buffer, dtype=dtype, count=count, offset=entry.offset)
    return flat.reshape(entry.shape)
