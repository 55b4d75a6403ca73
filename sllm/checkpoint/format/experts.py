"""Which tensors of a mixture of experts a model uses as one, known from their names alone.

Published checkpoints have a tensor for each expert and projection; models compute with one tensor
for all experts, in which the two halves of each expert's first projection follow one another. Where
the bytes lie in that order, the one is a view of the others, and nothing is copied.
"""

import re
from dataclasses import dataclass

_EXPERT = re.compile(r"(.*\bexperts\.)(\d+)\.(\w+)(\..+)?")
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
