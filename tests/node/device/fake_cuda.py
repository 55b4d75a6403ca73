"""libcuda over this process's memory: a double of the library, called through the real `Driver`.

Copies are carried out as late as CUDA allows: when an event behind them is waited for. Whoever
reuses a chunk before that finds other bytes on the device.
"""

import ctypes
import itertools
import threading
from collections import Counter, deque
from collections.abc import Sized
from dataclasses import dataclass, field
from typing import Any

_WITHOUT_CONTEXT = {
    "cuInit",
    "cuGetErrorString",
    "cuDeviceGetCount",
    "cuDeviceGet",
    "cuDeviceGetName",
    "cuDeviceGetUuid_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDevicePrimaryCtxRelease_v2",
    "cuCtxSetCurrent",
}
"""Functions that a thread may call without one."""

OK, OUT_OF_MEMORY, INVALID_VALUE, INVALID_CONTEXT, UNKNOWN = 0, 2, 1, 201, 999


@dataclass
class Copy:
    """One that was put into a stream."""

    target: int
    source: int
    size: int


@dataclass
class Stream:
    """What was put into it and has not been done: copies, and events that were recorded."""

    waiting: deque[Copy | int] = field(default_factory=deque)


class FakeCuda:
    """Has libcuda's functions; they take what ctypes would pass on."""

    def __init__(self, devices: int = 1, total_bytes: int = 64 << 20) -> None:
        self.devices = devices
        self.total_bytes = total_bytes
        self.taken_by_others: Counter[int] = Counter()
        """Bytes, by device."""
        self.allocations: dict[int, tuple[int, Any]] = {}
        """Their device and buffer, by address."""
        self.kind = 1
        """What is said of every address: the host's, which it is, or 2, the device's."""
        self.registered: dict[int, int] = {}
        self.contexts: list[int] = []
        """Devices whose context was made and not left."""
        self.handles: dict[bytes, int] = {}
        self.copied: list[int] = []
        """Sizes of the copies that were carried out, in their order."""
        self.most_in_stream = 0
        """Copies that were in a stream at once, at most."""
        self.gate = threading.Event()
        """While it is not set, no copy is carried out."""
        self.gate.set()
        self.fails: dict[str, int] = {}
        """What functions return, instead of doing anything."""
        self.threads: set[str] = set()
        """Names of the threads that have called."""
        self._streams: dict[int, Stream] = {}
        self._events: set[int] = set()
        self._numbers = itertools.count(1000)
        self._current = threading.local()

    def used_bytes(self, device: int = 0) -> int:
        """Bytes of a device that are allocated."""
        mine = [buffer for index, buffer in self.allocations.values() if index == device]
        return sum(map(ctypes.sizeof, mine))

    def _free_bytes(self, device: int) -> int:
        return self.total_bytes - self.taken_by_others[device] - self.used_bytes(device)

    def content(self, address: int, size: int) -> bytes:
        """What is in a device's memory."""
        return ctypes.string_at(address, size)

    @property
    def leaks(self) -> dict[str, int]:
        """How much of what was taken was not given back, by kind."""
        kinds: dict[str, Sized] = {
            "allocations": self.allocations,
            "registered": self.registered,
            "contexts": self.contexts,
            "streams": self._streams,
            "events": self._events,
        }
        return {kind: len(left) for kind, left in kinds.items() if left}

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if not name.startswith("cu"):
            return found
        self.threads.add(threading.current_thread().name)
        failure = self.fails.get(name)
        if name not in _WITHOUT_CONTEXT and not hasattr(self._current, "device"):
            failure = INVALID_CONTEXT
        return found if failure is None else lambda *_: failure

    def cuInit(self, flags: int) -> int:
        return OK

    def cuGetErrorString(self, code: int, text: Any) -> int:
        text._obj.value = {OUT_OF_MEMORY: b"out of memory"}.get(code, b"some error")
        return OK

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = self.devices
        return OK

    def cuDeviceGet(self, device: Any, ordinal: int) -> int:
        device._obj.value = ordinal
        return OK if ordinal < self.devices else INVALID_VALUE

    def cuDeviceGetName(self, name: Any, size: int, device: int) -> int:
        name.value = b"Fake GPU"
        return OK

    def cuDeviceGetUuid_v2(self, uuid: Any, device: int) -> int:
        uuid._obj[:] = [device] * 16
        return OK

    def cuDevicePrimaryCtxRetain(self, context: Any, device: int) -> int:
        self.contexts.append(device)
        context._obj.value = device + 1
        return OK

    def cuDevicePrimaryCtxRelease_v2(self, device: int) -> int:
        self.contexts.remove(device)
        return OK

    def cuCtxSetCurrent(self, context: int | None) -> int:
        vars(self._current).clear()
        if context is not None:
            self._current.device = context - 1
        return OK

    @property
    def _device(self) -> int:
        """Of the calling thread's context."""
        device: int = self._current.device
        return device

    def cuMemGetInfo_v2(self, free: Any, total: Any) -> int:
        free._obj.value = self._free_bytes(self._device)
        total._obj.value = self.total_bytes
        return OK

    def cuMemAlloc_v2(self, address: Any, size: int) -> int:
        if size > self._free_bytes(self._device):
            return OUT_OF_MEMORY
        buffer = (ctypes.c_char * size)()
        address._obj.value = ctypes.addressof(buffer)
        self.allocations[ctypes.addressof(buffer)] = (self._device, buffer)
        return OK

    def cuMemFree_v2(self, address: int) -> int:
        return OK if self.allocations.pop(address, None) else INVALID_VALUE

    def cuMemHostRegister_v2(self, address: int, size: int, flags: int) -> int:
        if address in self.registered:
            return INVALID_VALUE
        self.registered[address] = size
        return OK

    def cuMemHostUnregister(self, address: int) -> int:
        return OK if self.registered.pop(address, None) else INVALID_VALUE

    def cuStreamCreate(self, stream: Any, flags: int) -> int:
        stream._obj.value = next(self._numbers)
        self._streams[stream._obj.value] = Stream()
        return OK

    def cuStreamDestroy_v2(self, stream: int) -> int:
        return INVALID_VALUE if self._streams.pop(stream).waiting else OK

    def cuEventCreate(self, event: Any, flags: int) -> int:
        event._obj.value = next(self._numbers)
        self._events.add(event._obj.value)
        return OK

    def cuEventDestroy_v2(self, event: int) -> int:
        self._events.remove(event)
        return OK

    def cuEventRecord(self, event: int, stream: int) -> int:
        self._streams[stream].waiting.append(event)
        return OK

    def cuMemcpyHtoDAsync_v2(self, target: int, source: int, size: int, stream: int) -> int:
        if not self._is_pinned(source, size) or not self._is_allocated(target, size):
            return INVALID_VALUE
        waiting = self._streams[stream].waiting
        waiting.append(Copy(target, source, size))
        copies = sum(isinstance(one, Copy) for one in waiting)
        self.most_in_stream = max(self.most_in_stream, copies)
        return OK

    def cuEventSynchronize(self, event: int) -> int:
        self.gate.wait(20)
        for stream in self._streams.values():
            while event in stream.waiting:
                done = stream.waiting.popleft()
                if isinstance(done, Copy):
                    ctypes.memmove(done.target, done.source, done.size)
                    self.copied.append(done.size)
                elif done == event:
                    break
        return OK

    def cuIpcGetMemHandle(self, handle: Any, address: int) -> int:
        raw = address.to_bytes(64, "little")
        ctypes.memmove(ctypes.addressof(handle._obj), raw, 64)
        self.handles[raw] = address
        return OK if address in self.allocations else INVALID_VALUE

    def cuIpcOpenMemHandle_v2(self, address: Any, handle: Any, flags: int) -> int:
        found = self.handles.get(bytes(handle.bytes))
        if found is None or found not in self.allocations:
            return INVALID_VALUE
        address._obj.value = found
        return OK

    def cuPointerGetAttribute(self, value: Any, attribute: int, address: int) -> int:
        value._obj.value = self.kind
        return OK

    def _is_pinned(self, address: int, size: int) -> bool:
        return any(
            start <= address and address + size <= start + length
            for start, length in self.registered.items()
        )

    def _is_allocated(self, address: int, size: int) -> bool:
        return any(
            start <= address and address + size <= start + len(buffer)
            for start, (_, buffer) in self.allocations.items()
        )
