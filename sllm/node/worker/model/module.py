"""A model in a worker: what is loaded while weights are on their way, and the module over them."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast

from sllm.checkpoint.format.experts import expert_part
from sllm.errors import UnsupportedModel
from sllm.node.worker.model.description import (
    Architecture,
    Check,
    config_dtype,
    load_architecture,
    takes_paged_cache,
)
from sllm.node.worker.model.joining import JoinedInPlace
from sllm.node.worker.model.refusing import refusing
from sllm.node.worker.model.stand_ins import StandIns
from sllm.node.worker.model.text import Vocabulary
from sllm.node.worker.ready_made.contents import ReadyMade, Weights

_NAMES_SHOWN = 3
_LETTERS_SHOWN = 200
_GENERATION = "generation_config.json"


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """What a model's small files give."""

    directory: Path
    """Where they are."""
    architecture: Architecture
    tokenizer: PreTrainedTokenizerFast
    vocabulary: Vocabulary
    stop_token_ids: frozenset[int]
    """Tokens with which the model ends its text."""

    @property
    def vocabulary_size(self) -> int:
        """Token ids that the model knows are less than this."""
        return int(self.architecture.config.get_text_config().vocab_size)


def load_files(directory: Path, check: Check = takes_paged_cache) -> ModelFiles:
    """Loads everything but weights.

    Args:
        directory: has it.
        check: of the engine.

    Raises:
        UnsupportedModel: The engine cannot run the architecture, or has no use for the tokenizer.
    """
    architecture = load_architecture(directory, check)
    tokenizer = _load_tokenizer(directory)
    return ModelFiles(
        directory=directory,
        architecture=architecture,
        tokenizer=tokenizer,
        vocabulary=make_vocabulary(tokenizer),
        stop_token_ids=_stop_token_ids(directory, architecture.config, tokenizer),
    )


def make_vocabulary(tokenizer: PreTrainedTokenizerFast) -> Vocabulary:
    """What turning the tokenizer's tokens into text takes."""
    backend = tokenizer.backend_tokenizer
    added = backend.get_added_tokens_decoder()
    return Vocabulary(
        decode=backend.decode,  # without special tokens, by default
        byte_token_ids=frozenset(
            token_id
            for byte in range(256)
            if (token_id := backend.token_to_id(f"<0x{byte:02X}>")) is not None
        ),
        special_tokens={
            token_id: token.content for token_id, token in added.items() if token.special
        },
    )


def build_module(architecture: Architecture, weights: Mapping[str, torch.Tensor]) -> Any:
    """The model over its weights, whose memory it uses.

    Nothing is copied but what it computes of several weights, as of experts that lie apart.

    Raises:
        UnsupportedModel: The weights are not those that the architecture needs.
    """
    return load_module(architecture, weights).module


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model over its weights, and those that it has no use for."""

    module: Any
    unused: str
    """Names, the first few of many; empty if all are used."""


def load_module(architecture: Architecture, weights: Mapping[str, torch.Tensor]) -> Loaded:
    """As `build_module`, and says what is not used.

    Published checkpoints have more than their model at times: buffers of older versions, layers
    that predict further tokens, the eyes of a model that is served for its text. Transformers
    loads what it needs, and so do we.
    """
    with refusing("the weights do not fit the model's config.json"), _joining(weights):
        module, found = architecture.model_class.from_pretrained(
            None,
            config=architecture.config,
            state_dict=dict(weights),
            dtype=prevailing_dtype(weights),
            **architecture.arguments,
            ignore_mismatched_sizes=True,  # they are named below, like the rest
            output_loading_info=True,
        )
    refuse_any("lacks", found["missing_keys"])
    refuse_any("has in another shape", map(_mismatch, found["mismatched_keys"]))
    return Loaded(module, listed(found["unexpected_keys"]))


def _joining(weights: Mapping[str, torch.Tensor]) -> AbstractContextManager[object]:
    """Only for experts: being asked at every function of torch takes a fifth more time."""
    return JoinedInPlace() if any(map(expert_part, weights)) else nullcontext()


def refuse_any(verb: str, names: Iterable[str]) -> None:
    """Refuses a checkpoint of which any tensors are to be named.

    Raises:
        UnsupportedModel: Says what is with them, as `verb` has it.
    """
    if shown := listed(names):
        raise UnsupportedModel(
            f"the checkpoint {verb} {shown}; it does not belong to its config.json"
        )


def listed(names: Iterable[str]) -> str:
    """The first few of them, and how many more there are; empty if there are none."""
    ordered = sorted(names)
    shown = ", ".join(name[:_LETTERS_SHOWN] for name in ordered[:_NAMES_SHOWN])
    more = len(ordered) - _NAMES_SHOWN
    return f"{shown} and {more} more" if more > 0 else shown


def _mismatch(found: tuple[str, Sequence[int], Sequence[int]]) -> str:
    name, shape, expected = found
    return f"{name} ({list(shape)} instead of {list(expected)})"


def build_module_on_device(architecture: Architecture, weights: Mapping[str, torch.Tensor]) -> Any:
    """The same over weights that are on a device.

    Raises:
        UnsupportedModel: As `build_module`; or a parameter is none of the weights.
    """
    stand_ins = StandIns(weights, prevailing_dtype(weights))
    module = build_module(architecture, stand_ins.tensors)
    stand_ins.bind(module)
    return module


def prevailing_dtype(weights: Mapping[str, torch.Tensor]) -> torch.dtype:
    """The floating point dtype that most weights have.

    Raises:
        UnsupportedModel: None is a floating point number.
    """
    floating = (weight for weight in weights.values() if weight.is_floating_point())
    counts = Counter(weight.dtype for weight in floating)
    if not counts:
        raise UnsupportedModel("the checkpoint has no floating point weights")
    return counts.most_common(1)[0][0]


def run_dtype(config: Any, weights: Weights) -> torch.dtype:
    """The dtype in which a model of these weights is run.

    Of quantised ones it is the configuration's: most of what is not quantised are scales.

    Raises:
        UnsupportedModel: As `prevailing_dtype`.
    """
    if isinstance(weights, ReadyMade):
        return weights.dtype
    if getattr(config, "quantization_config", None) is not None:
        return config_dtype(config)
    return prevailing_dtype(weights)


def _load_tokenizer(directory: Path) -> PreTrainedTokenizerFast:
    with refusing("the model's tokenizer cannot be loaded"):
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise UnsupportedModel(
            f"the tokenizer {type(tokenizer).__name__} is not one of the tokenizers library; "
            "a model needs a tokenizer.json"
        )
    return tokenizer


def _stop_token_ids(
    directory: Path, config: Any, tokenizer: PreTrainedTokenizerFast
) -> frozenset[int]:
    """Every token that any of the model's files calls the end of a text.

    Files disagree often, as when a model was tuned for conversation: each names one that ends text.
    """
    configs = (config, config.get_text_config())  # those that only read may know of no end
    named = {
        "config.json": tuple(getattr(one, "eos_token_id", None) for one in configs),
        "the tokenizer": (tokenizer.eos_token_id,),
    }
    if (directory / _GENERATION).exists():
        with refusing(f"the model's {_GENERATION} cannot be used"):
            named[_GENERATION] = (GenerationConfig.from_pretrained(directory).eos_token_id,)
    return frozenset(
        token for file, values in named.items() for value in values for token in _ids(file, value)
    )


def _ids(file: str, value: Any) -> list[int]:
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(token) is int for token in ids):
        raise UnsupportedModel(
            f"eos_token_id in {file} is {value!r:.80}, and must be a token id or a list of them"
        )
    return ids
