"""Weights that the agent holds on a device, as tensors: nothing of them is copied."""

import ctypes
import os
import time
from dataclasses import dataclass

import torch
from torch.utils.dlpack import from_dlpack
from transformers.utils import import_utils

from sllm.checkpoint.format.manifest import TensorEntry
from sllm.checkpoint.reading.tensors import tensors_within
from sllm.errors import DeviceFailed, InvalidArgument
from sllm.node.device.driver import (
    HANDLE_BYTES,
    WORKER_DEVICE_VARIABLE,
    CudaError,
    Driver,
    MemoryKind,
    load_driver,
)

_WARM_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_WARM_SIZE = 64


@dataclass(frozen=True, slots=True)
class DeviceWeights:
    """Where a checkpoint's weights are on the device."""

    handle: bytes
    """Opens the agent's allocation."""
    size_bytes: int
    """Of the allocation."""
    partitions: tuple[int, ...]
    """Offset of each partition in the allocation."""
    tensors: tuple[TensorEntry, ...]


@dataclass(frozen=True, slots=True)
class OpenedWeights:
    """An allocation of the agent's in this process, until the process ends."""

    address: int
    memory: torch.Tensor
    """All of its bytes; uint8, on the device."""


def warm_up_device() -> float | None:
    """Does what a first use of the device would have to wait for, while weights are on their way.

    Makes the context and the libraries' handles.

    Returns:
        Seconds that it took. None: there is no device.
    """
    if not os.environ.get(WORKER_DEVICE_VARIABLE) or not torch.cuda.is_available():
        return None
    began = time.monotonic()
    _forget_that_there_was_none()
    torch.cuda.init()  # type: ignore[no-untyped-call]  # untyped library
    for dtype in _WARM_DTYPES:
        matrix = torch.zeros(_WARM_SIZE, _WARM_SIZE, dtype=dtype, device="cuda")
        torch.softmax(matrix @ matrix, -1)
    torch.cuda.current_stream().synchronize()
    return time.monotonic() - began


def device_problem() -> str:
    """Why torch cannot compute on the one device that this process sees. Empty: it can."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} was built without CUDA"
    try:
        torch.zeros(1, device="cuda").cpu()
    except Exception as error:  # whatever a driver, or torch's own libraries, lead to
        return f"torch {torch.__version__} cannot use it: {error}"
    return ""


def _forget_that_there_was_none() -> None:
    """Transformers remembers what the zygote has found, which sees no device."""
    for function in vars(import_utils).values():
        clear = getattr(function, "cache_clear", None)
        if clear is not None:
            clear()


def open_weights(weights: DeviceWeights) -> OpenedWeights:
    """Maps the agent's allocation into this process.

    Raises:
        InvalidArgument: the handle has not the form of one.
        DeviceUnavailable: there is no driver.
        DeviceFailed: the driver cannot open it.
    """
    if len(weights.handle) != HANDLE_BYTES:
        raise InvalidArgument(
            f"a handle has {HANDLE_BYTES} bytes, and this one {len(weights.handle)}"
        )
    driver = load_driver()
    try:
        driver.enter(0)
        address = driver.open(weights.handle)
        return OpenedWeights(address, bytes_at(driver, address, weights.size_bytes))
    except CudaError as error:
        raise DeviceFailed(f"the weights on the device cannot be opened: {error}") from error


def device_tensors(opened: OpenedWeights, weights: DeviceWeights) -> dict[str, torch.Tensor]:
    """The tensors by name. Tied ones share memory; one that begins between elements is copied.

    Raises:
        InvalidArgument: a tensor is not within the allocation.
        UnsupportedModel: torch has no dtype for a tensor.
    """
    partitions = [opened.memory[start:] for start in weights.partitions]
    for entry in weights.tensors:
        room = len(partitions[entry.partition]) if entry.partition < len(partitions) else -1
        if entry.offset + entry.size > room:
            raise InvalidArgument(f"tensor {entry.name!r} is not within the memory that was given")
    return tensors_within(weights.tensors, partitions)


class _DLDevice(ctypes.Structure):
    _fields_ = (("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32))


class _DLDataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _DLDevice),
        ("ndim", ctypes.c_int32),
        ("dtype", _DLDataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _DLManagedTensor(ctypes.Structure):
    """See dlpack.h, whose C ABI is how tensors of any origin come into torch without a copy."""

    _fields_ = (
        ("dl_tensor", _DLTensor),
        ("manager_ctx", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    )


_DL_CPU, _DL_CUDA, _DL_UINT = 1, 2, 1
_DL_NAME = b"dltensor"
_kept: list[object] = []
"""What torch refers to for as long as the process lives."""


def bytes_at(driver: Driver, address: int, size: int) -> torch.Tensor:
    """Memory as a tensor, on the device that it is on: the driver knows."""
    device = _DL_CUDA if driver.kind(address) is MemoryKind.DEVICE else _DL_CPU
    if device == _DL_CUDA:
        torch.cuda.init()  # type: ignore[no-untyped-call]  # untyped library
    shape = (ctypes.c_int64 * 1)(size)
    strides = (ctypes.c_int64 * 1)(1)
    managed = _DLManagedTensor(
        _DLTensor(
            address,
            _DLDevice(device, 0),
            1,
            _DLDataType(_DL_UINT, 8, 1),
            ctypes.cast(shape, ctypes.POINTER(ctypes.c_int64)),
            ctypes.cast(strides, ctypes.POINTER(ctypes.c_int64)),
            0,
        ),
        None,
        None,
    )
    _kept.extend((shape, strides, managed))
    make = ctypes.pythonapi.PyCapsule_New
    make.restype, make.argtypes = (
        ctypes.py_object,
        [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p],
    )
    tensor: torch.Tensor = from_dlpack(make(ctypes.addressof(managed), _DL_NAME, None))
    return tensor
