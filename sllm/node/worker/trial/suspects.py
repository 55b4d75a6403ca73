"""Which field of a configuration keeps the engine from giving the right tokens."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

_PLAIN_ROTATION = {"rope_type": "default"}
_OFF = ("sliding_window", "attention_chunk_size", "use_sliding_window", "attention_bias")


def without_suspects(config: Any, works: Callable[[Any], bool]) -> str:
    """The first feature without which a configuration works, as users know it; empty: none.

    Args:
        config: does not work.
        works: whether another one does.
    """
    for feature, other in _without_one(config):
        if works(other):
            return feature
    return ""


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
