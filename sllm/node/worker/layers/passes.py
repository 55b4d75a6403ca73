"""What goes to whoever computes layers, and comes back: a pass of the model over a batch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers.generation.continuous_batching.utils import build_attention_mask

KIND = "full_attention"
"""transformers' name for layers that see all keys."""


@dataclass(frozen=True, slots=True, eq=False)
class Pass:
    """What the layers before have made of a batch, and where its keys and values belong."""

    number: int
    hidden: torch.Tensor
    """[1, tokens, size]."""
    positions: torch.Tensor
    """Of each token in its sequence; integers [1, tokens]."""
    query_ends: torch.Tensor
    """Where sequences end among the tokens: 0, and then one number for each; int32."""
    key_ends: torch.Tensor
    """The same among keys, those of the cache included."""
    write: torch.Tensor
    """For each token its place in the cache; int64 [tokens]."""
    read: torch.Tensor
    """For each key its place in the cache; int64 [keys]. Empty: keys are those of the tokens."""

    @classmethod
    def of(cls, number: int, hidden: torch.Tensor, given: Mapping[str, Any]) -> "Pass":
        """The pass of a layer of transformers that is called with `given`, in its own words."""
        (write,), (read,) = given["write_index"], given["read_index"]
        return cls(
            number,
            hidden,
            given["position_ids"],
            given["cu_seq_lens_q"],
            given["cu_seq_lens_k"][KIND],
            write,
            read,
        )

    def arguments(self, model: Any, cache: Any) -> dict[str, Any]:
        """What a layer of `model` is called with beside the hidden states, over its cache."""
        return {
            "attention_mask": self._mask(),
            "position_embeddings": model.base_model.rotary_emb(self.hidden, self.positions),
            "position_ids": self.positions,
            "past_key_values": None,
            "use_cache": False,
            "is_causal": False,
            "cache": cache,
            "block_table": None,
            "cu_seq_lens_q": self.query_ends,
            "cu_seq_lens_k": {KIND: self.key_ends},
            "max_length_q": int(self.query_ends.diff().max()),
            "max_length_k": {KIND: int(self.key_ends.diff().max())},
            "write_index": [self.write],
            "read_index": [self.read],
        }

    def _mask(self) -> torch.Tensor:
        queries, keys = self.query_ends.tolist(), self.key_ends.tolist()
        least = torch.finfo(self.hidden.dtype).min
        mask = torch.full((1, 1, queries[-1], keys[-1]), least, dtype=self.hidden.dtype)
        build_attention_mask(mask, queries, keys)
        return mask


@dataclass(frozen=True, slots=True, eq=False)
class LayerCache:
    """Keys and values of a pass's tokens in one layer."""

    layer: int
    """Of the whole model, from 0."""
    keys: torch.Tensor
    """[1, heads, tokens, size]."""
    values: torch.Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """What has come of a pass, or a part of it."""

    number: int
    """Of the pass."""
    caches: tuple[LayerCache, ...]
    """In the order of the layers."""
    hidden: torch.Tensor | None
    """As many numbers as in that of the pass. None: more answers follow."""
