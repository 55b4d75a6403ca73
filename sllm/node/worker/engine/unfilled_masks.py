"""Masks of attention that are filled where a step needs them, and nowhere before."""

from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_DIMENSIONS = 4
"""Of transformers' masks: [1, 1, queries, keys]."""


class UnfilledMasks(TorchFunctionMode):
    """Leaves out that transformers fills masks on the CPU when it begins.

    A mask has as many columns as the cache has tokens, and would take a megabyte for each thousand.
    Each step fills the places of its own sequences anew, and `BySequence` looks at no others.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.Tensor.fill_ and _is_mask_reset(*args):
            return args[0]
        return func(*args, **(kwargs or {}))


def _is_mask_reset(tensor: torch.Tensor, value: Any = None) -> bool:
    is_mask = tensor.dim() == _DIMENSIONS and tensor.is_floating_point()
    return is_mask and tensor.device.type == "cpu" and value == torch.finfo(tensor.dtype).min
