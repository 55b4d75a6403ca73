"""What an instance takes for copies of its own, known from headers alone.

Imports no engine: it is asked of models that have never run.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Final

from sllm.checkpoint.format.dtypes import BITS, CONVERTIBLE
from sllm.checkpoint.format.experts import expert_part
from sllm.checkpoint.format.layout import apart_bytes
from sllm.checkpoint.format.manifest import TensorEntry
from sllm.node.worker.backends.names import VLLM

_BUFFERS: Final = 64 << 20
"""Bytes of tables, steps and kernels' scratch, whatever the model."""
_RANK: Final = 64 << 20
"""Bytes that a further process takes, whatever the model."""
_LOGITS_COPIES: Final = 4
"""Of a step's logits in float32 while tokens are drawn: as the model gives them, as requests change
them, as some ask for logprobs, and as draws are made."""
_FLOAT32_BYTES: Final = 4
_INT4: Final = ".weight_packed"
"""Ends the names of weights that are stored eight to a number."""
_REPACKING: Final = 24
"""Bytes that bringing such weights into another order takes for each byte of theirs: they are taken
apart, where two tensors have become one layer."""


@dataclass(frozen=True, slots=True)
class PrivateMemory:
    """Bytes on a processor, beside what any instance takes; on the high side."""

    bytes: int
    bytes_per_request: int = 0
    """For each request that the instance works on at once: logits, which none has at rest."""


def logits_bytes(vocabulary: int, ranks: int = 1) -> int:
    """What a step's logits take for each request in it, with what is made of them.

    Args:
        vocabulary: tokens that the model knows.
        ranks: processes that run it together, each of which has all of them.
    """
    return ranks * _LOGITS_COPIES * _FLOAT32_BYTES * vocabulary


def private_memory(
    engine: str, tensors: Sequence[TensorEntry], vocabulary: int, ranks: int = 1
) -> PrivateMemory:
    """What an instance copies, and what it computes with.

    Args:
        engine: that it runs on.
        tensors: the checkpoint's, as they will lie in the pool.
        vocabulary: tokens that the model knows, if it generates text. 0: it gives no logits.
        ranks: processes that run it together.
    """
    if engine == VLLM:
        return _of_vllm(tensors, vocabulary, ranks)
    # Weights are used where they lie, but for experts that would have to lie side by side.
    return PrivateMemory(apart_bytes(tensors), logits_bytes(vocabulary))


def _of_vllm(tensors: Sequence[TensorEntry], vocabulary: int, ranks: int) -> PrivateMemory:
    """VLLM copies all weights into parameters of its own, and those into its kernels' form.

    It does so tensor by tensor; what has been made into that form goes, but for embeddings and
    heads, which stay in both. Each rank has its part of them, what is too small to be divided, and
    the logits of all.
    """
    bits = _prevailing_bits(tensors)
    sizes: defaultdict[str, int] = defaultdict(int)
    for one in tensors:
        sizes[_parameter(one.name)] += _size(one, bits)
    both = sum(_size(one, bits) for one in tensors if one.shape[:1] == (vocabulary,))
    repacked = max((one.size for one in tensors if one.name.endswith(_INT4)), default=0)
    under_way = max([*sizes.values(), _REPACKING * repacked], default=0)
    fixed = sum(sizes.values()) + both + under_way + _BUFFERS
    others = (ranks - 1) * (_BUFFERS + _RANK)
    return PrivateMemory(fixed + others, logits_bytes(vocabulary, ranks))


def _parameter(name: str) -> str:
    """Names what a tensor becomes a part of: all experts of a layer are one parameter."""
    part = expert_part(name)
    return part.whole if part else name


def _prevailing_bits(tensors: Iterable[TensorEntry]) -> int:
    """Of the dtype that a model is run in, which is the one that most of its weights have."""
    counts = Counter(one.dtype for one in tensors if one.dtype in CONVERTIBLE)
    return BITS[counts.most_common(1)[0][0]] if counts else 0


def _size(tensor: TensorEntry, bits: int) -> int:
    floating = bits and tensor.dtype in CONVERTIBLE
    return prod(tensor.shape) * bits // 8 if floating else tensor.size
