"""The experts of a model, found where it uses them: in memory, as slices of its parameters."""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from inspect import signature
from typing import Any, Final

import torch

from sllm.node.worker.experts.memory import Span, SparseMemory

_HIDDEN: Final = "hidden_states"
_CHOSEN: Final = "top_k_index"
"""As transformers calls the argument that says which experts each token uses."""
_MATRICES: Final = 3
"""Dimensions of a parameter that has a matrix for each expert."""


@dataclass(frozen=True, slots=True)
class ExpertLayer:
    """The experts of one layer."""

    module: torch.nn.Module
    place: int
    """Of the argument that says which of them are used, among those of its call."""
    spans: tuple[tuple[Span, ...], ...]
    """Of each expert, what it consists of."""
    router: torch.Tensor | None
    """What chooses among them, [experts, hidden size], as far as that is one matrix. None: it is
    not known."""

    def chosen(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
        """For each token of a call, the experts that it uses."""
        found: torch.Tensor = kwargs[_CHOSEN] if _CHOSEN in kwargs else args[self.place]
        return found

    def hidden(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor | None:
        """What a call computes with, [tokens, hidden size]. None: not known."""
        found = kwargs.get(_HIDDEN, args[0] if args else None)
        return found if isinstance(found, torch.Tensor) and found.dim() == 2 else None


def expert_layers(model: torch.nn.Module, memory: SparseMemory) -> list[ExpertLayer]:
    """The layers of a model that have experts in `memory`, in their order.

    Those whose modules are told which experts are used: others may read any.
    """
    parents = {child: parent for parent in model.modules() for child in parent.children()}
    return [layer for one in model.modules() if (layer := _layer(one, parents.get(one), memory))]


def has_experts(module: torch.nn.Module) -> bool:
    """Whether a module has a matrix for each of several experts."""
    return bool(_matrices(module))


def is_told(module: torch.nn.Module) -> bool:
    """Whether it is told which of them its call uses."""
    return _CHOSEN in signature(module.forward).parameters


def _matrices(module: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [one for one in module.parameters(recurse=False) if one.dim() == _MATRICES]


def _layer(
    module: torch.nn.Module, parent: torch.nn.Module | None, memory: SparseMemory
) -> ExpertLayer | None:
    if not (has_experts(module) and is_told(module)):
        return None
    place = list(signature(module.forward).parameters).index(_CHOSEN)
    matrices = (_slices(one, memory) for one in _matrices(module))
    spans = [tuple(one) for one in zip(*matrices, strict=True)]
    there = tuple(tuple(filter(None, one)) for one in spans)
    router = _router(module, parent, len(spans))
    return ExpertLayer(module, place, there, router) if list(there) == spans else None


def _router(
    module: torch.nn.Module, parent: torch.nn.Module | None, count: int
) -> torch.Tensor | None:
    """The one matrix beside the experts that has a row for each of them."""
    beside = [one for one in parent.children() if one is not module] if parent else []
    rows = [
        one.data
        for sibling in beside
        for one in sibling.parameters()
        if one.dim() == 2 and one.shape[0] == count
    ]
    return rows[0] if len(rows) == 1 else None


def _slices(parameter: torch.Tensor, memory: SparseMemory) -> Iterator[Span | None]:
    """Where each expert's matrix is; None: elsewhere, or not in one piece."""
    for matrix in parameter.unbind(0):
        begin = matrix.data_ptr() - memory.address
        if not matrix.is_contiguous() or not 0 <= begin < memory.size_bytes:
            yield None
        else:
            partition = bisect_right(memory.starts, begin) - 1
            offset = begin - memory.starts[partition]
            yield Span(partition, offset, offset + matrix.nbytes)
