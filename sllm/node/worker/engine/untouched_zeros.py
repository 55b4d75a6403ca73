"""Zeros that take no memory before they are used."""

import mmap
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_BYTES = frozenset({torch.uint8, torch.int8})
_LEAST_BYTES = 1 << 20


class UntouchedZeros(TorchFunctionMode):
    """Has torch.zeros on the CPU leave it to the kernel to fill pages when they are first used.

    A KV cache is allocated whole at the start, as so many bytes. Filling it then would take a
    second for every few hundred megabytes, most of which a worker never uses.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.zeros and _is_bytes_on_cpu(args, kwargs):
            pages = mmap.mmap(-1, args[0], flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            return torch.frombuffer(pages, dtype=kwargs["dtype"])
        return func(*args, **kwargs)


def _is_bytes_on_cpu(args: Any, kwargs: dict[str, Any]) -> bool:
    if kwargs.get("dtype") not in _BYTES or len(args) != 1 or not isinstance(args[0], int):
        return False
    on_cpu = torch.device(kwargs.get("device") or "cpu").type == "cpu"
    return on_cpu and args[0] >= _LEAST_BYTES
