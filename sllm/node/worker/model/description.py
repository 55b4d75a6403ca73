"""What a model's configuration says of it, and whether the engine can run it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

from sllm.errors import UnsupportedModel
from sllm.node.worker.messages import ModelDescription

_LAYER_TYPES = frozenset({"full_attention", "sliding_attention"})
"""Those that transformers' paged cache knows."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """A configuration and the class of model that it is for."""

    config: Any
    model_class: Any


def load_architecture(directory: Path) -> Architecture:
    """Reads `config.json` and finds the model's class. Runs no code from the checkpoint.

    Raises:
        UnsupportedModel: The engine cannot run this architecture; names it.
    """
    try:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise UnsupportedModel(f"the model's config.json cannot be used: {error}") from error
    name = _name(config)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise _unsupported(name, "is not a causal language model that transformers knows")
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    if name != model_class.__name__:
        raise _unsupported(name, f"is not {model_class.__name__}, which is what generates text")
    _check(name, config, model_class)
    return Architecture(config, model_class)


def describe(directory: Path, dtype: str | None) -> ModelDescription:
    """What the model in `directory` needs.

    Args:
        directory: has `config.json`; weights are not looked at.
        dtype: name of a torch dtype that the weights are converted to. None: as stored.

    Raises:
        UnsupportedModel: The engine cannot run it.
    """
    return describe_config(load_architecture(directory).config, dtype)


def describe_config(config: Any, dtype: str | None) -> ModelDescription:
    """The same, of a configuration that has been loaded."""
    resolved = _dtype(dtype) if dtype else config.dtype or torch.float32
    return ModelDescription(
        architecture=_name(config),
        context_tokens=context_tokens(config),
        kv_bytes_per_token=kv_bytes_per_token(config, resolved),
        dtype=str(resolved).removeprefix("torch."),
    )


def context_tokens(config: Any) -> int:
    """Tokens that the model's positions allow."""
    return int(config.get_text_config().max_position_embeddings)


def kv_bytes_per_token(config: Any, dtype: torch.dtype) -> int:
    """Bytes of KV cache that one token takes: keys and values, of all layers and heads."""
    text = config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return int(2 * text.num_hidden_layers * heads * head_dim * dtype.itemsize)


def _check(name: str, config: Any, model_class: Any) -> None:
    text = config.get_text_config()
    foreign = set(getattr(text, "layer_types", None) or ()) - _LAYER_TYPES
    if foreign:
        raise _unsupported(name, f"has layers of type {', '.join(sorted(foreign))}")
    # Without it the model computes attention itself, past the paged cache.
    if not model_class._supports_attention_backend or model_class._is_stateful:
        raise _unsupported(name, "does not take a paged attention cache")
    if getattr(text, "max_position_embeddings", None) is None:
        raise _unsupported(name, "does not say how many positions it has")


def _unsupported(name: str, why: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"{name} {why}; supported are causal language models of transformers whose layers are all "
        f"of type {' or '.join(sorted(_LAYER_TYPES))}, such as Llama, Qwen2, Mistral, OPT or GPT-2",
        metadata={"architecture": name},
    )


def _name(config: Any) -> str:
    names = getattr(config, "architectures", None)
    return str(names[0]) if names else f"a model without `architectures` ({config.model_type})"


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise UnsupportedModel(f"{name!r} is not a floating point dtype of torch")
    return dtype
