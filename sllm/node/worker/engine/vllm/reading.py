"""How much of a checkpoint's weights is read where they lie."""

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class ReadBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]  # as the base is made
    """Counts the bytes of some tensors that operations within the context read.

    Views of them read nothing. What is read twice counts twice.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0
        self._starts = min((one.data_ptr() for one in tensors.values()), default=0)
        self._ends = max((one.data_ptr() + one.nbytes for one in tensors.values()), default=0)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not func.is_view:
            self.bytes += sum(map(self._read, (*args, *kwargs.values())))
        return func(*args, **kwargs)

    def _read(self, value: Any) -> int:
        if isinstance(value, list | tuple):
            return sum(map(self._read, value))
        if not isinstance(value, torch.Tensor) or value.device.type != "cpu":
            return 0
        return value.nbytes if self._starts <= value.data_ptr() < self._ends else 0
