"""Which models run as layers one after the other, each by what the one before has made."""

from collections.abc import Sequence
from typing import Any, Final

import torch

FAMILIES: Final = ("llama", "qwen2")
"""Of `model_type`: those whose layers take hidden states, positions and a paged cache, and no more.
Tests hold them against the whole model."""


def layers_of(model: Any) -> Sequence[torch.nn.Module] | None:
    """The layers of a model for continuous batching. None: it is not run so."""
    config = model.config
    if config.model_type not in FAMILIES or _slides(config):
        return None
    layers = model.base_model.layers
    assert isinstance(layers, torch.nn.ModuleList), "the family's layers are a list"
    return list(layers)


def _slides(config: Any) -> bool:
    """Whether any layer sees only some of the keys, which lie in a cache of another shape."""
    kinds = set(getattr(config, "layer_types", None) or ())
    return bool(kinds - {"full_attention"})
