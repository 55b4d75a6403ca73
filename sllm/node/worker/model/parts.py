"""A module taken apart into what can wait for its own weights: layers, embeddings, heads."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

_LISTS = (torch.nn.ModuleList, torch.nn.ModuleDict, torch.nn.Sequential)
"""Modules whose members are called one after the other."""


@dataclass(frozen=True, slots=True)
class Part:
    """A module that runs as one: it reads nothing of what is listed before it is called."""

    module: torch.nn.Module
    spans: tuple[tuple[int, int], ...]
    """Addresses of its weights: of the first byte of each, and one past the last."""


@dataclass(frozen=True, slots=True)
class Parts:
    """A module, and what it consists of."""

    whole: torch.nn.Module
    parts: tuple[Part, ...]
    """In the order in which they were made."""


def parts_of(whole: Any) -> Parts:
    """Takes a module apart.

    A layer is one part, whatever is in it: it may read the weights of a module within it without
    calling that. So is what stands beside layers, such as embeddings.
    """
    return Parts(whole, tuple(part for part in _parts(whole) if part.spans))


def _parts(module: torch.nn.Module) -> Iterator[Part]:
    if not any(isinstance(one, _LISTS) for one in module.modules()):
        yield Part(module, tuple(_spans(module.modules())))
        return
    # What is its own it may read at any time while it runs.
    yield Part(module, tuple(_spans([module])))
    for child in module.children():
        if isinstance(child, _LISTS):
            for member in child.children():
                yield Part(member, tuple(_spans(member.modules())))
        else:
            yield from _parts(child)


def _spans(modules: Iterable[torch.nn.Module]) -> Iterator[tuple[int, int]]:
    for module in modules:
        held = (*module.parameters(recurse=False), *module.buffers(recurse=False))
        # Packed weights are no parameters: torch would not let them be.
        others = (one for one in vars(module).values() if isinstance(one, torch.Tensor))
        for tensor in (*held, *others):
            if tensor.layout is torch.strided and tensor.device.type == "cpu" and tensor.numel():
                yield _span(tensor)


def _span(tensor: torch.Tensor) -> tuple[int, int]:
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    last = sum((count - 1) * step for count, step in steps)
    begin = tensor.data_ptr()
    return begin, begin + (last + 1) * tensor.itemsize
