"""Which field of a configuration keeps the engine from giving the right tokens."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch

_PLAIN_ROTATION = {"rope_type": "default"}
_OFF = ("sliding_window", "attention_chunk_size", "use_sliding_window", "attention_bias")


def to_blame(model_class: Any, config: Any, works: Callable[[Any], bool]) -> str:
    """What about a model keeps it from being served, as users know it.

    The first feature without which it works; or else how it attends, by its settings and class.

    Args:
        model_class: of the model.
        config: does not work.
        works: whether another one does.
    """
    for feature, other in _without_one(config):
        if works(other):
            return feature
    latent = ["latent attention (kv_lora_rank)"] if hasattr(config, "kv_lora_rank") else []
    return ", ".join([*latent, *_attention(model_class, config)]) or "the architecture itself"


def _attention(model_class: Any, config: Any) -> list[str]:
    try:
        with torch.device("meta"):
            modules = model_class(config).modules()
    except Exception:
        return []
    names = {type(module).__name__ for module in modules}
    return sorted(name for name in names if name.endswith("Attention"))


def _without_one(config: Any) -> Iterator[tuple[str, Any]]:
    fields: dict[str, Any] = config.to_dict()
    scaling = fields.get("rope_parameters")
    scaling = scaling if isinstance(scaling, dict) else {}
    kind = scaling.get("rope_type")
    if kind not in (None, "default"):
        plain = {**_PLAIN_ROTATION, "rope_theta": scaling.get("rope_theta", 10_000.0)}
        yield from _made(config, f"rope_type {kind!r}", {"rope_parameters": plain})
    for name, value in fields.items():
        if "softcap" in name and value is not None:
            yield from _made(config, name, {name: None})
        elif name in _OFF and value:
            yield from _made(config, name, {name: None if type(value) is int else False})


def _made(config: Any, feature: str, changes: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    try:
        yield feature, type(config).from_dict({**copy.deepcopy(config.to_dict()), **changes})
    except Exception:
        return
