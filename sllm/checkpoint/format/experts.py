"""Which tensors of a mixture of experts a model uses as one, known from their names alone.

Published checkpoints have a tensor for each expert and projection; models compute with one tensor
for all experts, in which the two halves of each expert's first projection follow one another. Where
the bytes lie in that order, the one is a view of the others, and nothing is copied.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from sllm.checkpoint.format.manifest import BLOCK_BYTES, TensorEntry

_EXPERT = re.compile(r"(.*\bexperts\.)(\d+)\.(\w+)(\..+)?")
_FUSED = re.compile(r"(.*\bexperts\.)\w+(?:\.weight)?")
"""All experts of a layer in one tensor."""
_FIRST_HALF = {"up_proj": "gate_proj", "w3": "w1", "fc3": "fc1"}
"""The first half of an expert's first projection, by the second, as families call them."""


@dataclass(frozen=True, slots=True)
class ExpertPart:
    """What one tensor of one expert is to all experts of its layer."""

    whole: str
    """The same for all tensors that are used as one, and for no others."""
    expert: int
    projection: str
    """Its name; the first half of a projection sorts before the second."""


def expert_part(name: str) -> ExpertPart | None:
    """Where a tensor belongs among the experts of its layer; None: it is no expert's.

    Args:
        name: as published, like `model.layers.0.mlp.experts.7.up_proj.weight`.
    """
    found = _EXPERT.fullmatch(name)
    if found is None:
        return None
    experts, number, projection, rest = found.groups(default="")
    whole = f"{experts}{_FIRST_HALF.get(projection, projection)}{rest}"
    return ExpertPart(whole, int(number), projection)


@dataclass(frozen=True, slots=True)
class ExpertBytes:
    """What the experts of a checkpoint take in memory, each by itself in whole pages; at most."""

    total: int
    largest_layer: int
    """All of the layer whose experts take the most: a step may use each of them."""
    stored: int
    """What they have on disk."""


def expert_layer(tensor: TensorEntry) -> str | None:
    """Names the layer of which a tensor is one expert's, or all experts'; None: of none.

    Matrices alone: what else experts have is small, and stays with what is used at any time.
    """
    if part := expert_part(tensor.name):
        return part.whole.rpartition("experts.")[0] if len(tensor.shape) == 2 else None
    fused = _FUSED.fullmatch(tensor.name)
    return fused[1].removesuffix("experts.") if fused and len(tensor.shape) == 3 else None


def expert_bytes(tensors: Iterable[TensorEntry]) -> ExpertBytes | None:
    """What the experts of a checkpoint take; None: it is no mixture of experts."""
    layers, stored = Counter[str](), 0
    for tensor in tensors:
        if layer := expert_layer(tensor):
            layers[layer] += _in_pages(tensor)
            stored += tensor.size
    return ExpertBytes(layers.total(), max(layers.values()), stored) if stored else None


def _in_pages(tensor: TensorEntry) -> int:
    """Of one expert's matrix, or of all of a layer, each with the ends of two pages."""
    count = max(1, tensor.shape[0]) if len(tensor.shape) == 3 else 1
    return count * (-(-tensor.size // count // BLOCK_BYTES) + 1) * BLOCK_BYTES
