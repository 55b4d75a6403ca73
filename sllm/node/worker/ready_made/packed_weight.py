"""Weights of linear layers in the blocks that oneDNN reads, used where they lie.

Given rows, oneDNN brings them into blocks in every call, or once into memory of its own. Here it is
given blocks that somebody has made before: torch's interface for compiled models, a stable C ABI,
makes a tensor of any memory and of what oneDNN says of it (`aoti_torch_create_tensor_from_blob_v2`
in torch/csrc/inductor/aoti_torch/c/shim.h).
"""

import ctypes
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

import torch

from sllm.node.worker.ready_made.descriptor import block_bytes, is_sound

DTYPES: Final = (torch.bfloat16, torch.float32)
"""In which weights are packed."""
_KNOWN_SHAPE: Final = (64, 64)
"""Of the weight whose descriptor tells what all of them have in common."""
_ROWS_HINT: Final = 16
"""Rows of input for which blocks are chosen. With it results are the same to the last bit as those
of vLLM's own handlers, for any number of rows; with 1 they are not in float32."""


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """The weight of a linear layer, which multiplies by its transpose."""

    shape: tuple[int, int]
    """(output features, input features)."""
    dtype: torch.dtype
    blocks: torch.Tensor
    """uint8, one dimension: the bytes as oneDNN has them."""
    descriptor: bytes
    """Of the blocks, as oneDNN writes it; means something to the same torch on such a processor."""
    _owner: Any = field(default=None, repr=False, compare=False)
    """Keeps the memory of `blocks` where it is nobody else's."""

    def bind(self) -> torch.Tensor:
        """An opaque tensor over the blocks, which must stay for as long as it does.

        Raises:
            RuntimeError: The descriptor is none of oneDNN's here, or not of these blocks.
        """
        self._check()
        library, handle = _library(), ctypes.c_void_p()
        sizes = (ctypes.c_int64 * 2)(*self.shape)
        strides = (ctypes.c_int64 * 2)(self.shape[1], 1)
        failed = library.aoti_torch_create_tensor_from_blob_v2(
            ctypes.c_void_p(self.blocks.data_ptr()),
            ctypes.c_int64(2),
            sizes,
            strides,
            ctypes.c_int64(0),
            _code(self.dtype),
            library.aoti_torch_device_type_cpu(),
            0,
            ctypes.byref(handle),
            library.aoti_torch_layout__mkldnn(),
            self.descriptor,
            ctypes.c_int64(len(self.descriptor)),
        )
        if failed:
            raise RuntimeError(f"oneDNN does not take the blocks of a weight of {self.shape}")
        bound: torch.Tensor = torch._C._aoti.alloc_tensor_by_stealing_from_void_ptr(
            _capsule(handle)
        )
        return bound

    def _check(self) -> None:
        """Before oneDNN reads by the descriptor, which may have come with a checkpoint."""
        if self.dtype not in DTYPES or not is_sound(
            self.descriptor, self.shape, _known_descriptor(self.dtype), _KNOWN_SHAPE
        ):
            raise RuntimeError(f"a weight of {self.shape} is described by another oneDNN")
        if block_bytes(self.descriptor, self.dtype.itemsize) != self.blocks.numel():
            raise RuntimeError(f"a weight of {self.shape} has not the blocks that it says")


def can_pack() -> bool:
    """Whether torch has oneDNN here, and this way to it."""
    return bool(
        torch._C._has_mkldnn
        and hasattr(torch._C, "_aoti")
        and hasattr(_library(), "aoti_torch_layout__mkldnn")
    )


def is_packable(weight: torch.Tensor) -> bool:
    """Whether oneDNN has blocks for a weight here that are of use."""
    if weight.ndim != 2 or not weight.numel() or weight.dtype not in DTYPES:
        return False
    supported: bool = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return weight.dtype is not torch.bfloat16 or supported


def pack(weight: torch.Tensor) -> PackedWeight:
    """Brings a weight into blocks, in memory of their own.

    Args:
        weight: (output features, input features), dense; see `is_packable`.
    """
    opaque = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _ROWS_HINT)
    size = torch.ops.mkldnn._nbytes(opaque)
    address = int(torch.ops.mkldnn.data_ptr(opaque))
    memory = (ctypes.c_char * size).from_address(address)
    descriptor = torch.ops.mkldnn._get_mkldnn_serialized_md(opaque).numpy().tobytes()
    blocks = torch.frombuffer(memory, dtype=torch.uint8)
    rows, columns = weight.shape
    return PackedWeight((rows, columns), weight.dtype, blocks, descriptor, opaque)


class PackedLinear(torch.nn.Module):
    """A linear layer over a packed weight: `y = x Wᵀ + b`."""

    def __init__(self, packed: PackedWeight, bias: torch.Tensor | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = packed.shape
        self.weight = packed.bind()
        self.bias = bias
        self._kept = packed.blocks

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Multiplies.

        Args:
            rows: (..., input features).

        Returns:
            (..., output features).
        """
        return linear(rows, self.weight, self.bias)


def linear(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """The product with an opaque weight; see `PackedLinear.forward`."""
    product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
    return product


@cache
def _known_descriptor(dtype: torch.dtype) -> bytes:
    return pack(torch.ones(_KNOWN_SHAPE, dtype=dtype)).descriptor


@cache
def _library() -> Any:
    library = ctypes.CDLL(f"{torch.__path__[0]}/lib/libtorch_cpu.so")
    for name in ("bfloat16", "float32"):
        getattr(library, f"aoti_torch_dtype_{name}").restype = ctypes.c_int32
    return library


def _code(dtype: torch.dtype) -> int:
    name = str(dtype).removeprefix("torch.")
    code: int = getattr(_library(), f"aoti_torch_dtype_{name}")()
    return code


def _capsule(handle: ctypes.c_void_p) -> Any:
    new = ctypes.pythonapi.PyCapsule_New
    new.restype = ctypes.py_object
    new.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    return new(handle, None, None)
