"""What a model's configuration says of it, and whether the engine can run it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
)
from transformers.utils import CONFIG_NAME

from sllm.embedding.purpose import Task
from sllm.errors import UnsupportedModel
from sllm.node.worker.messages import ModelDescription
from sllm.node.worker.model.config_checks import (
    UNUSABLE,
    check_config,
    check_file,
    check_layers,
    unsupported,
)
from sllm.node.worker.model.purposes import GENERATES_TEXT, SEES_IMAGES, Use, use_of
from sllm.node.worker.model.quantisation import Quantisation, check_plain, quantisation_of
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
_HIDDEN_COPIES = 10
"""Of hidden states that are there at once in a pass, queries, keys and values among them."""
_WIDEST_COPIES = 6
"""The same of what a layer's widest part gives, which with a gate is twice as wide."""
_MASK_ROWS = 3
"""For each token a row of numbers as long as its text: layers may have several masks."""
_SCORE_ROWS = 3
"""The same for each head, where attention makes all scores."""
_PROCESSORS = ("preprocessor_config.json", "processor_config.json")
"""What says how images become a model's inputs, of older and newer checkpoints."""
_BY_VLLM = (
    "which vLLM runs here on processors, and transformers does not: deploy it with engine 'vllm', "
    "on a node that has it"
)
"""Of quantised models."""


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
    def quantisation(self) -> Quantisation | None:
        """How its weights are quantised. None: they are not.

        Raises:
            UnsupportedModel: In a way that is not served.
        """
        return quantisation_of(self.name, self.config)

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
    check_plain(architecture.name, architecture.config, _BY_VLLM)
    if architecture.use.purpose.task is not Task.GENERATE:
        return  # it has no cache
    if architecture.use.purpose.takes_images:
        raise UnsupportedModel(
            f"{architecture.name} sees images, which vLLM runs here, and transformers does not: "
            "deploy it with engine 'vllm', on a node that has it",
            metadata={"architecture": architecture.name},
        )
    model_class = architecture.model_class
    # Without it the model computes attention itself, past the paged cache.
    if not model_class._supports_attention_backend or model_class._is_stateful:
        raise unsupported(architecture.name, "does not take a paged attention cache")


def load_architecture(directory: Path, check: Check = takes_paged_cache) -> Architecture:
    """Reads `config.json` and finds the model's class. Runs no code from the checkpoint.

    Args:
        directory: has it.
        check: of the engine.

    Raises:
        UnsupportedModel: The engine cannot run this architecture; names it.
    """
    check_file(directory / CONFIG_NAME)
    with refusing(UNUSABLE):
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
        architecture = _architecture(config, use_of(directory, config))
        _check_processor(architecture, directory)
        quantisation_of(architecture.name, config)
        check(architecture)
    return architecture


def _check_processor(architecture: Architecture, directory: Path) -> None:
    there = any((directory / name).exists() for name in _PROCESSORS)
    if architecture.use.purpose.takes_images and not there:
        raise unsupported(architecture.name, f"sees images, and comes without {_PROCESSORS[0]}")


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
    with refusing(UNUSABLE):
        resolved = _dtype(dtype) if dtype else config_dtype(config)
        _check_dtype(architecture, dtype, resolved)
        return ModelDescription(
            architecture=_name(config),
            context_tokens=seen_tokens(architecture),
            kv_bytes_per_token=(
                ranks * kv_bytes_per_token(config, resolved, ranks)
                if purpose.task is Task.GENERATE
                else pass_bytes_per_token(architecture, resolved)
            ),
            dtype=str(resolved).removeprefix("torch."),
            vocabulary=int(config.get_text_config().vocab_size),
            purpose=purpose,
        )


def _check_dtype(architecture: Architecture, asked: str | None, dtype: torch.dtype) -> None:
    """Scales belong to what they scale: none is converted."""
    quantisation = architecture.quantisation
    if quantisation is None:
        return
    name = str(dtype).removeprefix("torch.")
    if asked or name not in quantisation.dtypes:
        raise UnsupportedModel(
            f"{architecture.name} is quantised to {quantisation.bits} bits, which is served in "
            f"{' and '.join(quantisation.dtypes)} as its config.json says, not in {name}: deploy "
            "it without dtype, or another copy",
            metadata={"architecture": architecture.name},
        )


def config_dtype(config: Any) -> torch.dtype:
    """The dtype that a configuration says its model is run in.

    It is a name there once transformers has saved the model.
    """
    said = config.dtype or torch.float32
    return said if isinstance(said, torch.dtype) else _dtype(said)


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


def pass_bytes_per_token(architecture: Architecture, dtype: torch.dtype) -> int:
    """Bytes that one token takes while a model that embeds or scores computes a pass of many.

    They are what is there at once of a layer, on the high side: copies of its hidden states and of
    what its widest part gives, and a row of the mask, or of all heads' scores where those are made.
    """
    text = architecture.config.get_text_config()
    hidden, widest = int(text.hidden_size), int(getattr(text, "intermediate_size", 0))
    row = seen_tokens(architecture) * torch.float32.itemsize
    rows = _MASK_ROWS
    if not getattr(architecture.model_class, "_supports_sdpa", False):
        rows += _SCORE_ROWS * int(text.num_attention_heads)
    return dtype.itemsize * (_HIDDEN_COPIES * hidden + _WIDEST_COPIES * widest) + rows * row


def _architecture(config: Any, use: Use) -> Architecture:
    name = _name(config)
    match use.purpose.task:
        case Task.GENERATE:
            model_class = _generating(name, config)
            use = use if model_class in _causal(config) else SEES_IMAGES
            check_layers(name, config)
        case Task.EMBED:
            model_class = _encoding(name, config, MODEL_MAPPING)
        case Task.SCORE:
            model_class = _encoding(name, config, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING)
            if name != model_class.__name__:
                raise unsupported(name, f"is not {model_class.__name__}, which is what scores")
    check_config(name, config)
    return Architecture(config, model_class, use)


def _generating(name: str, config: Any) -> Any:
    """The class of a model that generates, and may see images as well.

    What goes by either name is served for its text.
    """
    seeing = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING.get(type(config), None)
    known = [*_causal(config), *([] if seeing is None else [seeing])]
    if not known:
        raise unsupported(name, "is not a causal language model that transformers knows")
    for model_class in known:
        if name == model_class.__name__:
            return model_class
    raise unsupported(name, f"is not {known[0].__name__}, which is what generates text")


def _causal(config: Any) -> list[Any]:
    found = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    return [] if found is None else [found]


def _encoding(name: str, config: Any, known: Mapping[type[Any], Any]) -> Any:
    model_class = known.get(type(config), None)
    if model_class is None or isinstance(model_class, tuple):
        raise unsupported(name, "is no model of its kind that transformers knows")
    if getattr(config, "is_encoder_decoder", False):
        raise unsupported(name, "has an encoder and a decoder")
    return model_class


def _name(config: Any) -> str:
    names = getattr(config, "architectures", None)
    name = str(names[0]) if names else f"a model without `architectures` ({config.model_type})"
    return name[:200]


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise UnsupportedModel(f"{name!r} is not a floating point dtype of torch")
    return dtype
