"""A module over weights on a device, built by transformers without a look at them.

Transformers loads a state dict to the processor's memory, or takes memory of the device for a
second copy. So it is given tensors of the same names and shapes in addresses that take no memory,
and works out what belongs where: names, ties, views. Afterwards every parameter is bound to the
bytes on the device that its stand-in stands for.
"""

import bisect
from collections.abc import Callable, Iterable, Mapping

import torch

from sllm import libc
from sllm.checkpoint.files.memory import reserve
from sllm.errors import UnsupportedModel

_ALIGNMENT = 64


class StandIns:
    """Tensors in the place of others."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> None:
        """Makes a stand-in for each tensor; those that share memory get one together.

        Args:
            tensors: on the device, contiguous. Floating ones of another dtype are converted, as
                transformers would do.
            dtype: in which the module is built.
        """
        distinct: dict[int, torch.Tensor] = {}
        for one in tensors.values():
            distinct.setdefault(one.data_ptr(), one)
        converted = {address: _to(one, dtype) for address, one in distinct.items()}
        self._originals = {
            name: converted[one.data_ptr()] if one.numel() else one for name, one in tensors.items()
        }
        self._places: dict[int, int] = {}
        """Where the stand-ins of each storage begin. Neighbours there are neighbours here."""
        self._storages: list[torch.UntypedStorage] = []
        end = 0
        for storage in _storages(self._originals.values()):
            self._places[storage.data_ptr()] = end
            self._storages.append(storage)
            end += -(-storage.nbytes() // _ALIGNMENT) * _ALIGNMENT
        self._starts = list(self._places.values())
        memory = reserve(max(end, 1), libc.PROT_READ | libc.PROT_WRITE)
        self._memory = torch.frombuffer(memory, dtype=torch.uint8)

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The stand-ins, by name. What is read in them is zero."""
        return {name: self._stand_in(tensor) for name, tensor in self._originals.items()}

    def bind(self, module: torch.nn.Module) -> None:
        """Has parameters and buffers of a module use what their stand-ins stand for.

        Raises:
            UnsupportedModel: a parameter was computed from weights, which nobody has read.
        """
        for name, parameter in module.named_parameters():
            parameter.data = self._bound(name, parameter.data, _refuse)
        for owner in module.modules():
            for name, buffer in owner.named_buffers(recurse=False):
                setattr(owner, name, self._bound(name, buffer, self._moved))

    def _stand_in(self, tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.numel():
            return torch.empty(tensor.shape, dtype=tensor.dtype)
        skipped = tensor.storage_offset() * tensor.itemsize
        start = self._places[tensor.untyped_storage().data_ptr()] + skipped
        raw = self._memory[start : start + tensor.nbytes]
        return raw.view(tensor.dtype).reshape(tensor.shape)

    def _bound(
        self,
        name: str,
        tensor: torch.Tensor,
        otherwise: Callable[[str, torch.Tensor], torch.Tensor],
    ) -> torch.Tensor:
        """The same elements, in the same order, of the original."""
        offset = tensor.data_ptr() - self._memory.data_ptr()
        if not tensor.numel():
            return self._moved(name, tensor)
        if not 0 <= offset < self._memory.numel():
            return otherwise(name, tensor)
        piece = bisect.bisect_right(self._starts, offset) - 1
        skipped = (offset - self._starts[piece]) // tensor.itemsize
        bound = torch.empty(0, dtype=tensor.dtype, device=self._device)
        return bound.set_(self._storages[piece], skipped, tensor.shape, tensor.stride())

    def _moved(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """What is no weight: computed on the processor, and small."""
        return tensor.to(self._device)

    @property
    def _device(self) -> torch.device:
        return next(iter(self._originals.values())).device


def _storages(tensors: Iterable[torch.Tensor]) -> Iterable[torch.UntypedStorage]:
    """Each once. What has no elements has none."""
    storages = (tensor.untyped_storage() for tensor in tensors if tensor.numel())
    return {storage.data_ptr(): storage for storage in storages}.values()


def _to(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _refuse(name: str, tensor: torch.Tensor) -> torch.Tensor:
    raise UnsupportedModel(
        f"parameter {name} is computed from the checkpoint's tensors when the model is loaded, "
        "which is not done for weights on a device; pack the model's safetensors again, or save "
        "it in the form in which transformers uses it"
    )
