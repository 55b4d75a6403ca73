"""A small model quantised as a checkpoint says of its own, computing what that stands for.

Its layers have the tensors that compressed-tensors writes, by the same names, so that saving it
makes a checkpoint of that kind; and they give what an engine's kernels are to give of these.
"""

from typing import Any, Final

import torch

from sllm.errors import UnsupportedModel
from sllm.node.worker.model.quantisation import Quantisation

_BITS: Final = 32
"""Of the numbers in which narrower ones are packed."""
_HEAD: Final = "lm_head"
_LEAST: Final = 1e-10
"""Of a scale, which is divided by."""
_KERNEL_BLOCK: Final = 32
"""Inputs and outputs of int4 layers are multiples of it, for vLLM's kernel."""


class Int8Linear(torch.nn.Module):
    """Weights with a scale for each output, inputs with one for each row."""

    weight: torch.Tensor
    weight_scale: torch.Tensor

    def __init__(self, linear: Any) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        scale = weight.abs().amax(1, keepdim=True).clamp(min=_LEAST) / 127
        self.register_buffer("weight", _rounded(weight / scale, 8).to(torch.int8))
        self.register_buffer("weight_scale", scale.to(linear.weight.dtype))
        self.bias = linear.bias

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """What a linear layer gives of rows, rounded as its kernel rounds them."""
        scales = rows.float().abs().amax(-1, keepdim=True).clamp(min=_LEAST) / 127
        product = _rounded(rows.float() / scales, 8) @ self.weight.float().T
        result = product * scales * self.weight_scale.float().T
        return (result if self.bias is None else result + self.bias).to(rows.dtype)


class Int4Linear(torch.nn.Module):
    """Weights eight to a number, with a scale for each group of inputs of each output."""

    weight_packed: torch.Tensor
    weight_scale: torch.Tensor

    def __init__(self, linear: Any, group_size: int | None) -> None:
        super().__init__()
        outputs, inputs = linear.weight.shape
        size = group_size or inputs
        if outputs % _KERNEL_BLOCK or inputs % _KERNEL_BLOCK or inputs % size:
            raise UnsupportedModel(
                f"it has a layer of {outputs} x {inputs} int4 weights in groups of {size}; both "
                f"have to be multiples of {_KERNEL_BLOCK}, and of whole groups"
            )
        groups = linear.weight.detach().float().view(outputs, inputs // size, size)
        scale = (groups.abs().amax(2).clamp(min=_LEAST) / 7.5).to(linear.weight.dtype)
        numbers = _rounded(groups / scale.float()[..., None], 4).view(outputs, inputs)
        self.register_buffer("weight_packed", _packed(numbers.to(torch.int32) + 8, 4))
        self.register_buffer("weight_scale", scale)
        self.register_buffer("weight_shape", torch.tensor([outputs, inputs]))
        self.bias = linear.bias

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """What a linear layer gives of rows."""
        scale = self.weight_scale.float()
        outputs, groups = scale.shape
        numbers = _unpacked(self.weight_packed, 4).float() - 8
        weight = (numbers.view(outputs, groups, -1) * scale[..., None]).view(outputs, -1)
        return torch.nn.functional.linear(rows, weight.to(rows.dtype), self.bias)


def quantise(module: Any, quantisation: Quantisation) -> None:
    """Has every linear layer of a model but its head have quantised weights.

    Args:
        module: of transformers, of plain weights, or of none, on the device "meta".
        quantisation: how.

    Raises:
        UnsupportedModel: It has no such layer, or one of a size that kernels do not take.
    """
    layers = [
        (name, layer)
        for name, layer in module.named_modules()
        if isinstance(layer, torch.nn.Linear) and name != _HEAD
    ]
    if not layers:
        raise UnsupportedModel("it is quantised, and has no linear layers that could be")
    for name, layer in layers:
        module.set_submodule(name, _quantised(layer, quantisation))


def _quantised(layer: Any, quantisation: Quantisation) -> torch.nn.Module:
    if quantisation.quantises_activations:
        return Int8Linear(layer)
    return Int4Linear(layer, quantisation.group_size)


def _rounded(numbers: torch.Tensor, bits: int) -> torch.Tensor:
    most = 2 ** (bits - 1)
    return numbers.round().clamp(-most, most - 1)


def _packed(numbers: torch.Tensor, bits: int) -> torch.Tensor:
    """Several of one row to a number of 32 bits, the first in the lowest bits."""
    count = _BITS // bits
    packed = torch.zeros_like(numbers[:, ::count])
    for place in range(count):
        packed |= numbers[:, place::count] << (bits * place)
    return packed


def _unpacked(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """What `_packed` has packed."""
    mask = 2**bits - 1
    parts = [(packed >> (bits * place)) & mask for place in range(_BITS // bits)]
    return torch.stack(parts, 2).flatten(1)
