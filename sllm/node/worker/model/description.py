"""What a model's configuration says of it, and whether the engine can run it."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
)
from transformers.utils import CONFIG_NAME

from sllm.embedding.purpose import Task
from sllm.errors import UnsupportedModel
from sllm.node.worker.messages import ModelDescription
from sllm.node.worker.model.purposes import GENERATES_TEXT, Use, use_of
from sllm.node.worker.model.refusing import refusing

_LATE_POSITIONS = frozenset(
    {
        "camembert",
        "data2vec-text",
        "esm",
        "longformer",
        "roberta",
        "roberta-prelayernorm",
        "xlm-roberta",
        "xlm-roberta-xl",
    }
)
"""Models whose positions begin behind the number of the token that texts are padded with."""
_MPNET_POSITIONS = 2
"""The same, where it is always the same number."""
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
_UNUSABLE = "the model's config.json cannot be used"


@dataclass(frozen=True, slots=True)
class Architecture:
    """A configuration and the class of model that it is for."""

    config: Any
    model_class: Any
    use: Use = GENERATES_TEXT
    """What it is for."""

    @property
    def arguments(self) -> Mapping[str, Any]:
        """What its class is made with, beside the configuration: parts that are not needed go."""
        task = self.use.purpose.task
        pools = "add_pooling_layer" in signature(self.model_class.__init__).parameters
        return {"add_pooling_layer": False} if task is Task.EMBED and pools else {}

    def made(self, config: Any) -> Any:
        """A model of its class, with random weights or, on the device "meta", without any."""
        return self.model_class(config, **self.arguments)

    @property
    def name(self) -> str:
        """As the configuration has it."""
        return _name(self.config)


Check = Callable[[Architecture], None]
"""Refuses an architecture that an engine is known not to run, with an `UnsupportedModel`."""


def takes_paged_cache(architecture: Architecture) -> None:
    """Refuses what transformers' continuous batching does not run.

    Raises:
        UnsupportedModel: Names the architecture.
    """
    if architecture.use.purpose.task is not Task.GENERATE:
        return  # it has no cache
    model_class = architecture.model_class
    # Without it the model computes attention itself, past the paged cache.
    if not model_class._supports_attention_backend or model_class._is_stateful:
        raise _unsupported(architecture.name, "does not take a paged attention cache")


def load_architecture(directory: Path, check: Check = takes_paged_cache) -> Architecture:
    """Reads `config.json` and finds the model's class. Runs no code from the checkpoint.

    Args:
        directory: has it.
        check: of the engine.

    Raises:
        UnsupportedModel: The engine cannot run this architecture; names it.
    """
    _check_file(directory / CONFIG_NAME)
    with refusing(_UNUSABLE):
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
        architecture = _architecture(config, use_of(directory, config))
        check(architecture)
    return architecture


def describe(architecture: Architecture, dtype: str | None, ranks: int = 1) -> ModelDescription:
    """What a model needs.

    Args:
        architecture: as `load_architecture` gives it.
        dtype: name of a torch dtype that the weights are converted to. None: as stored.
        ranks: processes that run it together.

    Raises:
        UnsupportedModel: The configuration says nothing that can be used.
    """
    config, purpose = architecture.config, architecture.use.purpose
    with refusing(_UNUSABLE):
        resolved = _dtype(dtype) if dtype else config.dtype or torch.float32
        return ModelDescription(
            architecture=_name(config),
            context_tokens=seen_tokens(architecture),
            kv_bytes_per_token=(
                ranks * kv_bytes_per_token(config, resolved, ranks)
                if purpose.task is Task.GENERATE
                else 0
            ),
            dtype=str(resolved).removeprefix("torch."),
            vocabulary=int(config.get_text_config().vocab_size),
            purpose=purpose,
        )


def seen_tokens(architecture: Architecture) -> int:
    """Tokens of one request that the model takes in.

    Of a model that embeds or scores, as many as its files say, and as have a position: those of
    RoBERTa's kind begin behind the number of the token that texts are padded with.
    """
    config, most = architecture.config, architecture.use.most_tokens
    positions = context_tokens(config)
    if architecture.use.purpose.task is Task.GENERATE:
        return positions
    if config.model_type in _LATE_POSITIONS:
        positions -= int(config.pad_token_id or 0) + 1
    elif config.model_type == "mpnet":
        positions -= _MPNET_POSITIONS
    return min(positions, most or positions)


def context_tokens(config: Any) -> int:
    """Tokens that one request may have.

    As many as the model's positions allow. Where their rotation changes for the whole sequence once
    it has outgrown the context that the model was trained on ("longrope"), that context: keys in
    the cache were rotated the old way, and others in the batch would be rotated the new way.
    """
    text = config.get_text_config()
    whole = int(text.max_position_embeddings)
    original = [
        scaling.get("original_max_position_embeddings")
        or getattr(text, "original_max_position_embeddings", None)
        for scaling in rope_scalings(text)
        if scaling.get("rope_type") == "longrope"
    ]
    return min([whole, *(int(tokens) for tokens in original if tokens)])


def rope_scalings(text: Any) -> list[dict[str, Any]]:
    """How positions are rotated: one record, or one for each kind of layer."""
    found = getattr(text, "rope_parameters", None)
    if not isinstance(found, dict):
        return []
    return [found, *(scaling for scaling in found.values() if isinstance(scaling, dict))]


def kv_bytes_per_token(config: Any, dtype: torch.dtype, ranks: int = 1) -> int:
    """Bytes of KV cache that one token takes: keys and values, of all layers and heads.

    Args:
        config: the model's.
        dtype: in which it is run.
        ranks: processes that run it together. It is what one of them has: its part of the heads, or
            one that others have as well where there are fewer.
    """
    text = config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    heads_here = max(1, heads // ranks)
    return int(2 * text.num_hidden_layers * heads_here * head_dim * dtype.itemsize)


def _architecture(config: Any, use: Use) -> Architecture:
    name = _name(config)
    match use.purpose.task:
        case Task.GENERATE:
            model_class = _generating(name, config)
            _check_layers(name, config)
        case Task.EMBED:
            model_class = _encoding(name, config, MODEL_MAPPING)
        case Task.SCORE:
            model_class = _encoding(name, config, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING)
            if name != model_class.__name__:
                raise _unsupported(name, f"is not {model_class.__name__}, which is what scores")
    _check_config(name, config)
    return Architecture(config, model_class, use)


def _generating(name: str, config: Any) -> Any:
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise _unsupported(name, "is not a causal language model that transformers knows")
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    if name != model_class.__name__:
        raise _unsupported(name, f"is not {model_class.__name__}, which is what generates text")
    return model_class


def _encoding(name: str, config: Any, known: Mapping[type[Any], Any]) -> Any:
    model_class = known.get(type(config), None)
    if model_class is None or isinstance(model_class, tuple):
        raise _unsupported(name, "is no model of its kind that transformers knows")
    if getattr(config, "is_encoder_decoder", False):
        raise _unsupported(name, "has an encoder and a decoder")
    return model_class


def _check_layers(name: str, config: Any) -> None:
    """Refuses what no paged cache is known to serve."""
    text = config.get_text_config()
    foreign = set(getattr(text, "layer_types", None) or ()) - _LAYER_TYPES
    if foreign:
        raise _unsupported(name, f"has layers of type {', '.join(sorted(foreign))}")
    if varying := getattr(text, "per_layer_attributes", None):
        raise _unsupported(name, f"has layers that differ in {', '.join(sorted(varying))}")


def _check_config(name: str, config: Any) -> None:
    """Refuses what no engine is known to run, and numbers that cannot be."""
    text = config.get_text_config()
    if getattr(text, "max_position_embeddings", None) is None:
        raise _unsupported(name, "does not say how many positions it has")
    _check_not_quantized(name, config)
    _check_counts(lambda field: getattr(text, field, None))
    _check_experts(text)


def _check_not_quantized(name: str, config: Any) -> None:
    settings = getattr(config, "quantization_config", None)
    if settings is None:
        return
    if not isinstance(settings, dict):
        settings = settings.to_dict() if hasattr(settings, "to_dict") else {}
    method = settings.get("quant_method") or "a method that it does not name"
    raise UnsupportedModel(
        f"{name} is quantised ({method!s:.40}, by quantization_config in its config.json), which "
        "is not supported; deploy a copy whose weights are plain floating point numbers",
        metadata={"architecture": name},
    )


def _check_file(path: Path) -> None:
    """Names a number that cannot be, before the library divides by it."""
    with refusing(_UNUSABLE):
        fields = json.loads(path.read_bytes())
        if not isinstance(fields, dict):
            raise UnsupportedModel(f"{_UNUSABLE}: it is no JSON object")
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
                f"{_UNUSABLE}: {field} is {value!r:.40}, and must be a number from 1 to {most}"
            )


def _check_experts(text: Any) -> None:
    """More of them than there are cannot be chosen for a token: the first step would find out."""
    used = getattr(text, "num_experts_per_tok", None)
    counts = [getattr(text, field, None) for field in _EXPERTS]
    there = [count for count in counts if type(count) is int]
    if type(used) is int and there and used > max(there):
        raise UnsupportedModel(
            f"{_UNUSABLE}: num_experts_per_tok is {used}, and there are {max(there)} experts"
        )


def _unsupported(name: str, why: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"{name} {why}; supported are causal language models of transformers whose layers are all "
        f"of type {' or '.join(sorted(_LAYER_TYPES))}, such as Llama, Qwen2, Mistral or GPT-2; "
        "and models that embed or score, such as BertModel or XLMRobertaForSequenceClassification",
        metadata={"architecture": name},
    )


def _name(config: Any) -> str:
    names = getattr(config, "architectures", None)
    name = str(names[0]) if names else f"a model without `architectures` ({config.model_type})"
    return name[:200]


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise UnsupportedModel(f"{name!r} is not a floating point dtype of torch")
    return dtype
