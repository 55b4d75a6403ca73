"""transformers' module over ready-made weights: its linear layers read oneDNN's blocks.

Plain linear layers read rows, which oneDNN brings into blocks in every call: for few rows of input
that takes longer than the product itself.
"""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch

from sllm import libc
from sllm.checkpoint.files.memory import reserve
from sllm.errors import UnsupportedModel
from sllm.node.worker.model.description import Architecture
from sllm.node.worker.model.module import build_module, prevailing_dtype
from sllm.node.worker.ready_made.contents import ReadyMade
from sllm.node.worker.ready_made.packed_weight import PackedLinear, PackedWeight, is_packable, pack


def make_module_ready(architecture: Architecture, weights: Mapping[str, torch.Tensor]) -> ReadyMade:
    """Packs the weights of linear layers, and keeps all others by their names in the checkpoint.

    A weight that the module does not use as it lies in the checkpoint stays as it is.

    Raises:
        UnsupportedModel: The weights are not those that the architecture needs, or all of them are
            read as they are published.
    """
    module = build_module(architecture, weights)
    names = {one.data_ptr(): name for name, one in weights.items() if one.numel()}
    packed: dict[str, PackedWeight] = {}
    replaced: dict[str, str] = {}
    for name, layer in module.named_modules():
        weight = layer.weight if type(layer) is torch.nn.Linear else None
        if weight is None or not is_packable(weight):
            continue
        origin = names.get(weight.data_ptr())
        if origin and _is(weights[origin], weight):
            packed[name], replaced[name] = pack(weight), origin
    if not packed:
        raise UnsupportedModel("its kernels read weights as they are published")
    plain = _still_needed(module, weights, packed)
    gone = {name: origin for name, origin in replaced.items() if origin not in plain}
    return ReadyMade(plain, packed, prevailing_dtype(weights), gone)


def build_ready_module(architecture: Architecture, ready: ReadyMade) -> Any:
    """The model over ready-made weights, whose memory it uses.

    Transformers builds it over tensors in addresses that take no memory, where weights are packed:
    it works out what belongs where.

    Raises:
        UnsupportedModel: The weights are not those that the architecture needs.
    """
    stand_ins = {origin: _stand_in(ready.packed[name]) for name, origin in ready.replaced.items()}
    module = build_module(architecture, {**ready.plain, **stand_ins})
    for name, weight in ready.packed.items():
        layer = module.get_submodule(name)
        if type(layer) is not torch.nn.Linear or layer.weight.shape != weight.shape:
            raise UnsupportedModel(f"ready-made weights do not fit the model's {name}")
        module.set_submodule(name, PackedLinear(weight, layer.bias))
    return module


def _is(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype


def _still_needed(
    module: Any, weights: Mapping[str, torch.Tensor], packed: Mapping[str, PackedWeight]
) -> dict[str, torch.Tensor]:
    """Weights that are read as rows: by embeddings, for example, that share them with a head."""
    readers: defaultdict[int, set[str]] = defaultdict(set)
    for name, layer in module.named_modules():
        for parameter in layer.parameters(recurse=False):
            readers[parameter.data_ptr()].add(name)
    multiplied = {
        module.get_submodule(name).weight.data_ptr()
        for name in packed
        if readers[module.get_submodule(name).weight.data_ptr()] <= packed.keys()
    }
    return {name: one for name, one in weights.items() if one.data_ptr() not in multiplied}


def _stand_in(weight: PackedWeight) -> torch.Tensor:
    rows, columns = weight.shape
    size = rows * columns * weight.dtype.itemsize
    memory = reserve(size, libc.PROT_READ | libc.PROT_WRITE)
    return torch.frombuffer(memory, dtype=weight.dtype, count=rows * columns).view(rows, columns)
