"""What a model's config.json says, checked before any library divides by it."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sllm.errors import UnsupportedModel
from sllm.node.worker.model.refusing import refusing

_LAYER_TYPES = frozenset({"full_attention", "sliding_attention"})
"""Those that transformers' paged cache knows."""
_COUNTS = (
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_size",
    "vocab_size",
    "max_position_embeddings",
)
"""Fields that hold a positive number, where they hold anything."""
_OTHER_NAMES = ("n_layer", "n_head", "n_embd", "n_positions", "d_model", "intermediate_size")
"""What some architectures call them, and one more that is so."""
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_MOST = 2**31 - 1
_MOST_LAYERS = 1000
"""Each is built, be it without weights: a few times as many as any model has."""
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
"""How many a layer has, as architectures call it."""
UNUSABLE = "the model's config.json cannot be used"


def check_layers(name: str, config: Any) -> None:
    """Refuses what no paged cache is known to serve."""
    text = config.get_text_config()
    foreign = set(getattr(text, "layer_types", None) or ()) - _LAYER_TYPES
    if foreign:
        raise unsupported(name, f"has layers of type {', '.join(sorted(foreign))}")
    if varying := getattr(text, "per_layer_attributes", None):
        raise unsupported(name, f"has layers that differ in {', '.join(sorted(varying))}")


def check_config(name: str, config: Any) -> None:
    """Refuses what no engine is known to run, and numbers that cannot be."""
    text = config.get_text_config()
    if getattr(text, "max_position_embeddings", None) is None:
        raise unsupported(name, "does not say how many positions it has")
    _check_counts(lambda field: getattr(text, field, None))
    _check_experts(text)


def check_file(path: Path) -> None:
    """Names a number that cannot be, before the library divides by it."""
    with refusing(UNUSABLE):
        fields = json.loads(path.read_bytes())
        if not isinstance(fields, dict):
            raise UnsupportedModel(f"{UNUSABLE}: it is no JSON object")
    for part in (fields, fields.get("text_config")):
        if isinstance(part, dict):
            _check_counts(part.get, (*_COUNTS, *_OTHER_NAMES, *_LAYERS))


def _check_counts(get: Callable[[str], Any], names: Sequence[str] = _COUNTS) -> None:
    for field in names:
        value = get(field)
        if isinstance(value, list):  # some have one for each layer
            continue
        most = _MOST_LAYERS if field in _LAYERS else _MOST
        if value is not None and not (type(value) is int and 1 <= value <= most):
            raise UnsupportedModel(
                f"{UNUSABLE}: {field} is {value!r:.40}, and must be a number from 1 to {most}"
            )


def _check_experts(text: Any) -> None:
    """More of them than there are cannot be chosen for a token: the first step would find out."""
    used = getattr(text, "num_experts_per_tok", None)
    counts = [getattr(text, field, None) for field in _EXPERTS]
    there = [count for count in counts if type(count) is int]
    if type(used) is int and there and used > max(there):
        raise UnsupportedModel(
            f"{UNUSABLE}: num_experts_per_tok is {used}, and there are {max(there)} experts"
        )


def unsupported(name: str, why: str) -> UnsupportedModel:
    """Refuses an architecture, and says which ones are not."""
    return UnsupportedModel(
        f"{name} {why}; supported are causal language models of transformers whose layers are all "
        f"of type {' or '.join(sorted(_LAYER_TYPES))}, such as Llama, Qwen2, Mistral or GPT-2; "
        "and models that embed or score, such as BertModel or XLMRobertaForSequenceClassification",
        metadata={"architecture": name},
    )
