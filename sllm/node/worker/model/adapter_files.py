"""What a low-rank adapter is, as PEFT saves it: read from its settings and its tensors' headers."""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sllm.errors import UnsupportedAdapter
from sllm.node.worker.model.refusing import refusing

SETTINGS: Final = "adapter_config.json"
_PREFIX: Final = "base_model.model."
_SIDES: Final = (".lora_A.weight", ".lora_B.weight")
_DTYPES: Final = ("F32", "F16", "BF16")
_SHOWN: Final = 3
_LETTERS_SHOWN: Final = 120
_UNSERVED: Final = {
    "use_dora": "magnitudes (DoRA)",
    "lora_bias": "biases of its own",
    "modules_to_save": "whole layers of its own (modules_to_save)",
    "trainable_token_indices": "embeddings of tokens",
    "target_parameters": "parameters that are no linear layers (target_parameters)",
    "layer_replication": "layers that are there several times (layer_replication)",
    "alora_invocation_tokens": "tokens that it begins with (activated LoRA)",
    "use_qalora": "groups of inputs (QA-LoRA)",
    "arrow_config": "a choice among several (Arrow)",
}
"""Settings that make something else of an adapter, where they are set."""
_CHANGE_BASE: Final = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Beginnings that change the base's weights as well, unless they were converted at the end."""


@dataclass(frozen=True, slots=True)
class TensorForm:
    """A tensor, as its header tells of it."""

    name: str
    dtype: str
    """Of safetensors."""
    shape: Sequence[int]


@dataclass(frozen=True, slots=True)
class LayerForm:
    """What an adapter adds to one layer."""

    a: str
    """Name of a tensor, [rank, inputs]."""
    b: str
    """The same, [outputs, rank]."""
    rank: int
    inputs: int
    outputs: int
    scale: float


def adapter_layers(directory: Path, tensors: Iterable[TensorForm]) -> dict[str, LayerForm]:
    """What an adapter adds, by the names that the layers have in transformers' model.

    Args:
        directory: has its settings.
        tensors: all that it has.

    Raises:
        UnsupportedAdapter: It is none of the kind that is served; says what it has instead.
    """
    settings = _settings(directory)
    by_layer: dict[str, dict[str, TensorForm]] = {}
    for tensor in tensors:
        layer, side = _place(tensor)
        by_layer.setdefault(layer, {})[side] = tensor
    return {layer: _form(layer, sides, settings) for layer, sides in sorted(by_layer.items())}


def check_fits(
    layers: Mapping[str, LayerForm], there: Mapping[str, tuple[int, int]], max_rank: int
) -> None:
    """Holds an adapter against its base.

    Args:
        layers: what it adds to.
        there: inputs and outputs of the base's layers that may be added to.
        max_rank: that adapters of the base may have.

    Raises:
        UnsupportedAdapter: It does not fit; says what, with the numbers.
    """
    if unknown := sorted(layers.keys() - there.keys()):
        kinds = ", ".join(sorted({name.rpartition(".")[2] for name in there}))
        raise UnsupportedAdapter(
            f"the adapter adds to {_listed(unknown)}, which the base does not have, or which takes "
            f"none: it takes some on {kinds[:_LETTERS_SHOWN]}"
        )
    misfits = [
        f"{name} ({one.inputs} to {one.outputs} instead of {there[name][0]} to {there[name][1]})"
        for name, one in layers.items()
        if (one.inputs, one.outputs) != there[name]
    ]
    if misfits:
        raise UnsupportedAdapter(f"the adapter is for another base: it has {_listed(misfits)}")
    check_rank(layers, max_rank)


def check_rank(layers: Mapping[str, LayerForm], max_rank: int) -> None:
    """Refuses an adapter of a higher rank than its base allows.

    Raises:
        UnsupportedAdapter: It has one.
    """
    rank = max(one.rank for one in layers.values())
    if rank > max_rank:
        raise UnsupportedAdapter(
            f"the adapter has rank {rank}, and its base takes up to {max_rank} (max_adapter_rank)"
        )


def _settings(directory: Path) -> dict[str, Any]:
    with refusing(f"the adapter's {SETTINGS} cannot be used"):
        settings = json.loads((directory / SETTINGS).read_bytes())
    if not isinstance(settings, dict):
        raise UnsupportedAdapter(f"the adapter's {SETTINGS} is no JSON object")
    _check_kind(settings)
    return settings


def _check_kind(settings: Mapping[str, Any]) -> None:
    kind = settings.get("peft_type")
    if kind != "LORA":
        raise UnsupportedAdapter(
            f"the adapter is of PEFT's kind {kind!r:.40}; only LORA is served over a base: merge "
            "it into its base (merge_and_unload), and deploy that"
        )
    found = [what for field, what in _UNSERVED.items() if settings.get(field)]
    if settings.get("bias", "none") != "none":
        found.append("biases of its base")
    begins = settings.get("init_lora_weights")
    if isinstance(begins, str) and begins.lower().startswith(_CHANGE_BASE):
        found.append(
            f"a beginning that changes its base ({begins:.40}); convert it when you save it"
        )
    if found:
        raise UnsupportedAdapter(
            f"the adapter has {', '.join(found)}, which is not served over a base: merge it into "
            "its base (merge_and_unload), and deploy that"
        )


def _place(tensor: TensorForm) -> tuple[str, str]:
    """The layer that a tensor is for, and which of its two it is."""
    name = tensor.name.removeprefix(_PREFIX)
    for side in _SIDES:
        if name.endswith(side) and tensor.name.startswith(_PREFIX):
            return name.removesuffix(side), side
    raise UnsupportedAdapter(
        f"the adapter has a tensor {tensor.name[:_LETTERS_SHOWN]!r}, and not only "
        f"{_PREFIX}*{{{', '.join(_SIDES)}}}"
    )


def _form(layer: str, sides: Mapping[str, TensorForm], settings: Mapping[str, Any]) -> LayerForm:
    if set(sides) != set(_SIDES):
        raise UnsupportedAdapter(f"the adapter has only one of two tensors for {layer}")
    a, b = (sides[side] for side in _SIDES)
    for one in (a, b):
        if one.dtype not in _DTYPES:
            raise UnsupportedAdapter(
                f"the adapter's {one.name[:_LETTERS_SHOWN]} is {one.dtype}; served are "
                f"{', '.join(_DTYPES)}"
            )
    if a.dtype != b.dtype or len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1]:
        raise UnsupportedAdapter(
            f"the adapter's tensors for {layer} do not go together: {a.dtype} {list(a.shape)} and "
            f"{b.dtype} {list(b.shape)}"
        )
    rank = int(a.shape[0])
    if not rank:
        raise UnsupportedAdapter(f"the adapter has rank 0 for {layer}")
    scale = _scale(layer, rank, settings)
    return LayerForm(a.name, b.name, rank, int(a.shape[1]), int(b.shape[0]), scale)


def _scale(layer: str, rank: int, settings: Mapping[str, Any]) -> float:
    alpha = settings.get("lora_alpha", 8)
    patterns = settings.get("alpha_pattern") or {}
    with refusing(f"the adapter's {SETTINGS} cannot be used"):
        for pattern, other in patterns.items():  # as PEFT matches them, the first that does
            if re.match(rf"(.*\.)?({pattern})$", layer):
                alpha = other
                break
        scale = float(alpha) / (math.sqrt(rank) if settings.get("use_rslora") else rank)
    if not math.isfinite(scale):
        raise UnsupportedAdapter(f"the adapter's lora_alpha is {alpha!r:.40}")
    return scale


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(name[:_LETTERS_SHOWN] for name in names[:_SHOWN])
    more = len(names) - _SHOWN
    return f"{shown} and {more} more" if more > 0 else shown
