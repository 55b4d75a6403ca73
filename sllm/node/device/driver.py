"""CUDA's driver API, as far as weights need it: the one file that calls into libcuda.

ctypes rather than a binding of CUDA's: libcuda comes with the driver under a name that does not
change, so nothing is installed for it, the agent needs neither torch nor the runtime library, and
a test can put another library in its place. ctypes releases the GIL around each call.
"""

import ctypes
import os
from enum import IntEnum
from typing import Any

from sllm.errors import DeviceUnavailable

LIBRARY_VARIABLE = "SLLM_CUDA_LIBRARY"
"""Names the library, where it is not found as `LIBRARY`."""
LIBRARY = "libcuda.so.1"
WORKER_DEVICE_VARIABLE = "SLLM_WORKER_DEVICE"
"""Set for workers whose weights come on a CUDA device: the only one that they see."""
HANDLE_BYTES = 64
"""Of what names an allocation to other processes: CU_IPC_HANDLE_SIZE."""

OUT_OF_MEMORY = 2
"""CUDA_ERROR_OUT_OF_MEMORY."""

_REGISTER_PORTABLE = 1
_STREAM_NON_BLOCKING = 1
_EVENT_BLOCKING_SYNC, _EVENT_DISABLE_TIMING = 1, 2
_IPC_LAZY_ENABLE_PEER_ACCESS = 1
_POINTER_MEMORY_TYPE = 2

_INT, _UINT, _SIZE = ctypes.c_int, ctypes.c_uint, ctypes.c_size_t
_ADDRESS, _POINTER = ctypes.c_uint64, ctypes.c_void_p


class _Handle(ctypes.Structure):
    _fields_ = (("bytes", ctypes.c_ubyte * HANDLE_BYTES),)


_SIGNATURES: dict[str, list[Any]] = {
    "cuInit": [_UINT],
    "cuGetErrorString": [_INT, _POINTER],
    "cuDeviceGetCount": [_POINTER],
    "cuDeviceGet": [_POINTER, _INT],
    "cuDeviceGetName": [_POINTER, _INT, _INT],
    "cuDeviceGetUuid_v2": [_POINTER, _INT],
    "cuDevicePrimaryCtxRetain": [_POINTER, _INT],
    "cuDevicePrimaryCtxRelease_v2": [_INT],
    "cuCtxSetCurrent": [_POINTER],
    "cuMemGetInfo_v2": [_POINTER, _POINTER],
    "cuMemAlloc_v2": [_POINTER, _SIZE],
    "cuMemFree_v2": [_ADDRESS],
    "cuMemHostRegister_v2": [_POINTER, _SIZE, _UINT],
    "cuMemHostUnregister": [_POINTER],
    "cuStreamCreate": [_POINTER, _UINT],
    "cuStreamDestroy_v2": [_POINTER],
    "cuEventCreate": [_POINTER, _UINT],
    "cuEventDestroy_v2": [_POINTER],
    "cuEventRecord": [_POINTER, _POINTER],
    "cuEventSynchronize": [_POINTER],
    "cuMemcpyHtoDAsync_v2": [_ADDRESS, _POINTER, _SIZE, _POINTER],
    "cuIpcGetMemHandle": [_POINTER, _ADDRESS],
    "cuIpcOpenMemHandle_v2": [_POINTER, _Handle, _UINT],
    "cuPointerGetAttribute": [_POINTER, _INT, _ADDRESS],
}


class MemoryKind(IntEnum):
    """Whose memory an address is in; the numbers are those of CUmemorytype."""

    HOST = 1
    DEVICE = 2


class CudaError(Exception):
    """A call has failed."""

    def __init__(self, call: str, code: int, text: str) -> None:
        super().__init__(f"{call}: {text} ({code})")
        self.code = code
        """CUresult."""


class Driver:
    """The calls, with results as results and errors as exceptions.

    Those that take no device act on the context that the calling thread has made current. Any of
    them may block: the event loop calls none.

    Raises:
        CudaError: of every method, where CUDA says so.
    """

    def __init__(self, library: Any) -> None:
        """Initialises CUDA in this process, which must not fork afterwards.

        Args:
            library: has libcuda's functions, which take Python's numbers.
        """
        self._library = library
        self._call("cuInit", 0)

    @property
    def device_count(self) -> int:
        """Devices that this process may use."""
        count = _INT()
        self._call("cuDeviceGetCount", ctypes.byref(count))
        return count.value

    def name(self, index: int) -> str:
        """Of the model of a device."""
        name = ctypes.create_string_buffer(128)
        self._call("cuDeviceGetName", name, len(name), self._device(index))
        return name.value.decode(errors="replace")

    def uuid(self, index: int) -> str:
        """What names a device to every process, as CUDA_VISIBLE_DEVICES takes it."""
        raw = (ctypes.c_ubyte * 16)()
        self._call("cuDeviceGetUuid_v2", ctypes.byref(raw), self._device(index))
        digits = bytes(raw).hex()
        return "GPU-" + "-".join(
            (digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:])
        )

    def enter(self, index: int) -> None:
        """Makes a device's primary context, that of torch too, current in the calling thread."""
        context = _POINTER()
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), self._device(index))
        self._call("cuCtxSetCurrent", context.value)

    def leave(self, index: int) -> None:
        """Undoes `enter`; when the last user is gone, the context's memory is free."""
        self._call("cuCtxSetCurrent", None)
        self._call("cuDevicePrimaryCtxRelease_v2", self._device(index))

    def memory(self) -> tuple[int, int]:
        """Bytes of the device that are free, whoever uses the others, and bytes in all."""
        free, total = _SIZE(), _SIZE()
        self._call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value, total.value

    def allocate(self, size: int) -> int:
        """Takes memory of the device; its address."""
        address = _ADDRESS()
        self._call("cuMemAlloc_v2", ctypes.byref(address), size)
        return address.value

    def free(self, address: int) -> None:
        """Gives memory back. No other process may have it open."""
        self._call("cuMemFree_v2", address)

    def register(self, address: int, size: int) -> None:
        """Pins memory of the host, for all contexts: copies from it need no help of a processor."""
        self._call("cuMemHostRegister_v2", address, size, _REGISTER_PORTABLE)

    def unregister(self, address: int) -> None:
        """Undoes `register`."""
        self._call("cuMemHostUnregister", address)

    def create_stream(self) -> int:
        """A stream that waits for no other."""
        stream = _POINTER()
        self._call("cuStreamCreate", ctypes.byref(stream), _STREAM_NON_BLOCKING)
        return stream.value or 0

    def destroy_stream(self, stream: int) -> None:
        """Gives a stream back."""
        self._call("cuStreamDestroy_v2", stream)

    def create_event(self) -> int:
        """An event for which a thread waits without spinning."""
        event = _POINTER()
        flags = _EVENT_BLOCKING_SYNC | _EVENT_DISABLE_TIMING
        self._call("cuEventCreate", ctypes.byref(event), flags)
        return event.value or 0

    def destroy_event(self, event: int) -> None:
        """Gives an event back."""
        self._call("cuEventDestroy_v2", event)

    def record(self, event: int, stream: int) -> None:
        """Has an event come when all that was put into a stream before is done."""
        self._call("cuEventRecord", event, stream)

    def wait(self, event: int) -> None:
        """Returns when an event that was recorded has come."""
        self._call("cuEventSynchronize", event)

    def copy_to_device(self, target: int, source: int, size: int, stream: int) -> None:
        """Puts a copy of pinned memory into a stream; what is copied must stay until it is done."""
        self._call("cuMemcpyHtoDAsync_v2", target, source, size, stream)

    def export(self, address: int) -> bytes:
        """What another process opens an allocation with; `HANDLE_BYTES`."""
        handle = _Handle()
        self._call("cuIpcGetMemHandle", ctypes.byref(handle), address)
        return bytes(handle.bytes)

    def open(self, handle: bytes) -> int:
        """Maps another process's allocation here, until the process ends: its address.

        Raises:
            ValueError: it is no handle.
        """
        address = _ADDRESS()
        opened = _Handle.from_buffer_copy(handle)
        flags = _IPC_LAZY_ENABLE_PEER_ACCESS
        self._call("cuIpcOpenMemHandle_v2", ctypes.byref(address), opened, flags)
        return address.value

    def kind(self, address: int) -> MemoryKind:
        """Whose memory an address is in."""
        kind = _UINT()
        self._call("cuPointerGetAttribute", ctypes.byref(kind), _POINTER_MEMORY_TYPE, address)
        return MemoryKind(kind.value)

    def _device(self, index: int) -> int:
        device = _INT()
        self._call("cuDeviceGet", ctypes.byref(device), index)
        return device.value

    def _call(self, name: str, *arguments: Any) -> None:
        code: int = getattr(self._library, name)(*arguments)
        if code:
            raise CudaError(name, code, self._describe(code))

    def _describe(self, code: int) -> str:
        text = ctypes.c_char_p()
        if self._library.cuGetErrorString(code, ctypes.byref(text)) or not text.value:
            return "an error that the driver does not know"
        return text.value.decode(errors="replace")


def load_driver() -> Driver:
    """The driver of this machine.

    Raises:
        DeviceUnavailable: there is none, or it does not start; says why.
    """
    name = os.environ.get(LIBRARY_VARIABLE) or LIBRARY
    try:
        library = ctypes.CDLL(name)
        for function, arguments in _SIGNATURES.items():
            getattr(library, function).argtypes = arguments
        return Driver(library)
    except (OSError, AttributeError, CudaError) as error:
        raise DeviceUnavailable(
            f"no CUDA driver: {name}: {error}; install one, or run the node with --device cpu"
        ) from error
