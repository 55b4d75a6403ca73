"""Attention of continuous batching, one sequence at a time.

transformers puts all sequences of a step one after the other, copies the keys and values of all for
each head that shares them, and has every query meet the keys of every sequence under a mask: with n
requests, n times what is needed. On a GPU that is one launch instead of n. On a CPU it is time.

Models that torch's attention does not suit, such as those that cap its scores, bring a function of
their own. On a paged cache transformers would put one in its place that leaves out what is special
about it; here each sequence goes through the model's own, on every device.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache, wraps
from itertools import pairwise
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

_TORCH = ("sdpa", "paged|sdpa")
"""What transformers calls torch's attention; the second one before 5.18."""
_OWN = "paged|eager"
"""What it calls that of models with one of their own."""


@cache
def attend_as_models_do() -> None:
    """Has models of this process that bring their own attention use it from now on."""
    ALL_ATTENTION_FUNCTIONS[_OWN] = attend_own


@cache
def attend_by_sequence() -> None:
    """Has all models of this process attend so from now on, wherever sequences are packed.

    For devices where each row is paid for.
    """
    for name in _TORCH:
        if name in ALL_ATTENTION_FUNCTIONS:
            ALL_ATTENTION_FUNCTIONS[name] = by_sequence(ALL_ATTENTION_FUNCTIONS[name])


def by_sequence(forward: Callable[..., Any]) -> Callable[..., Any]:
    """An attention function of transformers that computes each packed sequence by itself.

    Args:
        forward: the function, which calls torch's `scaled_dot_product_attention`.
    """

    @wraps(forward)
    def attend(module: Any, *args: Any, **kwargs: Any) -> Any:
        borders = _borders(module, kwargs)
        if borders is None:
            return forward(module, *args, **kwargs)
        with BySequence(*borders):
            return forward(_Unrepeated(module), *args, **kwargs)

    return attend


def attend_own(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """An attention function of transformers: each packed sequence by the model's own.

    Args:
        module: the layer that attends.
        query: [1, heads, tokens, size].
        key: [1, key heads, tokens, size], of the tokens that are not in the cache yet.
        value: the same of the values.
        attention_mask: [1, 1, queries, keys], over all sequences. None: each is causal.
        **kwargs: what the layer gives its own function, and what continuous batching adds.

    Returns:
        [1, tokens, heads, size]; rows that only fill the batch up are zero.
    """
    own = sys.modules[module.__module__].eager_attention_forward
    cache = kwargs.pop("cache")
    key, value = cache.update(
        key_states=key, value_states=value, layer_idx=module.layer_idx, kwargs=kwargs
    )
    queries, keys = kwargs.pop("cu_seq_lens_q").tolist(), kwargs.pop("cu_seq_lens_k").tolist()
    found = query.new_zeros(1, query.shape[2], query.shape[1], value.shape[-1])
    for (begin, end), (first, last) in zip(pairwise(queries), pairwise(keys), strict=True):
        mask = None if attention_mask is None else attention_mask[..., begin:end, first:last]
        found[:, begin:end], _ = own(
            module,
            query[:, :, begin:end],
            key[:, :, first:last],
            value[:, :, first:last],
            mask,
            **kwargs,
        )
    return found, None


def _borders(layer: Any, kwargs: Mapping[str, Any]) -> tuple[list[int], list[int]] | None:
    """Where sequences begin and end among queries and keys; None: nothing to take apart."""
    queries, keys = kwargs.get("cu_seq_lens_q"), kwargs.get("cu_seq_lens_k")
    if isinstance(keys, Mapping):  # by the kind of layer; which one this is the cache knows
        keys = next(iter(keys.values())) if len(keys) == 1 else _of_its_kind(layer, keys, kwargs)
    if queries is None or keys is None:
        return None
    return queries.tolist(), keys.tolist()


def _of_its_kind(layer: Any, keys: Mapping[str, Any], kwargs: Mapping[str, Any]) -> Any:
    allocators = getattr(kwargs.get("cache"), "layer_to_allocator", {})
    allocator = allocators.get(getattr(layer, "layer_idx", None))
    return None if allocator is None else keys.get(allocator.layer_type)


class _Unrepeated:
    """A layer whose keys and values transformers does not copy for each head that shares them."""

    num_key_value_groups = 1

    def __init__(self, layer: Any) -> None:
        self._layer = layer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)


class BySequence(TorchFunctionMode):
    """Within it, torch's attention takes sequences that lie one after the other one by one."""

    def __init__(self, queries: Sequence[int], keys: Sequence[int]) -> None:
        super().__init__()
        self.spans = list(zip(pairwise(queries), pairwise(keys), strict=True))
        """Of each sequence, its queries and its keys: first, and one past the last."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is scaled_dot_product_attention:
            return self.attend(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor,
        **options: Any,
    ) -> torch.Tensor:
        """Attention of each sequence by itself.

        Queries: [1, heads, tokens, size]; keys and values have as many heads, or a divisor of
        that. The mask: [1, 1, queries, keys].
        """
        found = torch.zeros_like(query)  # also of the rows that only fill the batch up
        asked, answers = _by_key(query, key.shape[1]), _by_key(found, key.shape[1])
        for (begin, end), (first, last) in self.spans:
            answers[:, :, begin:end] = _attend_one(
                asked[:, :, begin:end],
                key[:, :, first:last],
                value[:, :, first:last],
                attn_mask=attn_mask[..., begin:end, first:last],
                **options,
            )
        return found


def _by_key(heads: torch.Tensor, keys: int) -> torch.Tensor:
    """[1, heads, tokens, size] as [keys, sharing, tokens, size]: neighbours share their keys."""
    _, count, tokens, size = heads.shape
    return heads.view(keys, count // keys, tokens, size)


def _attend_one(
    asked: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **options: Any
) -> torch.Tensor:
    """Attention of one sequence: [keys, sharing, tokens, size] for [1, keys, tokens, size]."""
    sharing, tokens = asked.shape[1:3]
    if tokens == 1:  # heads that share keys are like so many tokens: one product for all of them
        rows = asked.permute(2, 0, 1, 3)
        found = scaled_dot_product_attention(rows, key, value, **options)
        return found.permute(1, 2, 0, 3)
    key, value = key.expand(sharing, -1, -1, -1), value.expand(sharing, -1, -1, -1)
    found = scaled_dot_product_attention(asked.transpose(0, 1), key, value, **options)
    return found.transpose(0, 1)
