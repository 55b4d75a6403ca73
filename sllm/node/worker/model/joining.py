"""Tensors that lie side by side joined without a copy, as when transformers fuses experts.

A checkpoint has a tensor for each expert, a model one for all of them: transformers stacks and
concatenates the former when it loads the latter, in memory of its own, once in every process. Where
the bytes lie in order already, the result is a view of them, and stays shared with all others.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class JoinedInPlace(TorchFunctionMode):
    """Within it, `torch.stack` and `torch.cat` give views wherever there is one.

    Elsewhere they copy, as ever.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Called for every function of torch."""
        view = _JOINS[func](*args, **(kwargs or {})) if func in _JOINS else None
        return view if view is not None else func(*args, **(kwargs or {}))


def stacked(tensors: Sequence[torch.Tensor], dim: int = 0, **others: object) -> torch.Tensor | None:
    """What `torch.stack` would give, in the memory of the tensors; None: no view is that.

    One is if they lie at equal distances from one to the next.
    """
    if others or not _are_in_one_memory(tensors) or not 0 <= dim <= tensors[0].dim():
        return None
    first = tensors[0]
    places = [int(tensor.storage_offset()) for tensor in tensors]
    steps = {later - earlier for earlier, later in pairwise(places)} or {first.numel()}
    if len(steps) > 1 or min(steps) <= 0 or any(one.shape != first.shape for one in tensors):
        return None
    shape, strides = list(first.shape), list(first.stride())
    shape.insert(dim, len(tensors))
    strides.insert(dim, steps.pop())
    return first.as_strided(shape, strides)


def concatenated(
    tensors: Sequence[torch.Tensor], dim: int = 0, **others: object
) -> torch.Tensor | None:
    """What `torch.cat` would give, in the memory of the tensors; None: no view is that.

    One is if each begins where the one before would go on in this dimension.
    """
    if others or not _are_in_one_memory(tensors) or not 0 <= dim < tensors[0].dim():
        return None
    for one, other in pairwise(tensors):
        goes_on = one.storage_offset() + one.shape[dim] * one.stride(dim)
        if other.storage_offset() != goes_on or _across(one, dim) != _across(other, dim):
            return None
    shape = list(tensors[0].shape)
    shape[dim] = sum(tensor.shape[dim] for tensor in tensors)
    return tensors[0].as_strided(shape, tensors[0].stride())


_JOINS: dict[Callable[..., Any], Callable[..., torch.Tensor | None]] = {
    torch.stack: stacked,
    torch.cat: concatenated,
}


def _are_in_one_memory(tensors: Sequence[torch.Tensor]) -> bool:
    """Whether they are plain tensors of one kind, whose elements are in one storage."""
    if not isinstance(tensors, list | tuple) or not tensors:
        return False
    # Neither those without memory nor those whose elements are computed when they are read.
    if any(type(one) is not torch.Tensor or one.is_meta or one.is_complex() for one in tensors):
        return False
    first = tensors[0]
    memory = first.untyped_storage().data_ptr()
    return first.numel() > 0 and all(
        one.dtype is first.dtype
        and one.stride() == first.stride()
        and one.untyped_storage().data_ptr() == memory
        for one in tensors
    )


def _across(tensor: torch.Tensor, dim: int) -> tuple[int, ...]:
    """The sizes of all other dimensions."""
    return (*tensor.shape[:dim], *tensor.shape[dim + 1 :])
