"""What an instance on vLLM takes beside the pool and its KV cache."""

from collections.abc import Iterable
from dataclasses import dataclass

_BUFFERS = 64 << 20
"""Bytes of tables, steps and kernels' scratch, whatever the model."""
_LOGITS_COPIES = 4
"""Of a step's logits in float32 while tokens are drawn."""
_FLOAT32_BYTES = 4


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of a checkpoint, as its header says."""

    shape: tuple[int, ...]
    bytes: int
    """In the dtype that the model is run in."""


def private_bytes(tensors: Iterable[Tensor], vocabulary: int, max_requests: int) -> int:
    """Bytes that are the instance's own on a processor, on the high side.

    vLLM copies all weights into parameters of its own, and those into the form that its kernels
    want, tensor by tensor; what has been made into that form goes, but for embeddings and heads,
    which stay in both.

    Args:
        tensors: the checkpoint's.
        vocabulary: tokens that the model knows.
        max_requests: in one step.
    """
    found = list(tensors)
    both = sum(one.bytes for one in found if one.shape[:1] == (vocabulary,))
    under_way = max((one.bytes for one in found), default=0)
    logits = _LOGITS_COPIES * _FLOAT32_BYTES * max_requests * vocabulary
    return sum(one.bytes for one in found) + both + under_way + logits + _BUFFERS
