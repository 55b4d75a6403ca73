"""What a start will need, tried beforehand: each step refuses a model with a reason of its own."""

import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tokenizers
import torch

from sllm.checkpoint.sources.sources import LocalSource, inspect
from sllm.embedding.purpose import Task
from sllm.errors import NoCapacity, UnsupportedModel
from sllm.node.worker.backends.interface import Backend
from sllm.node.worker.messages import NO_PARSERS, ModelDescription, ParserNames
from sllm.node.worker.model.description import (
    Architecture,
    context_tokens,
    describe,
    seen_tokens,
)
from sllm.node.worker.model.module import ModelFiles, load_files
from sllm.node.worker.model.quantisation import Quantisation, with_groups
from sllm.node.worker.model.refusing import refusing
from sllm.node.worker.model.seeing import with_images
from sllm.node.worker.trial.adapters import check_takes_adapters
from sllm.node.worker.trial.comparison import ALIKE, EXACT, Measure, compare, randomise
from sllm.node.worker.trial.encoding import compare_encodings
from sllm.node.worker.trial.experts import check_experts
from sllm.node.worker.trial.fitting import check_fit
from sllm.node.worker.trial.quantising import quantise
from sllm.node.worker.trial.shrinking import tiny
from sllm.node.worker.trial.suspects import to_blame

_TEXT = "The quick brown fox jumps over 13 lazy dogs."
_TELLS_NOTHING = {"_name_or_path", "transformers_version", "dtype"}
"""Fields of a configuration that are of no matter to the engine."""
_GROUP = 32
"""Inputs that share a scale in small copies, as in the narrowest groups that are usual."""
_WEIGHTS = ("*.safetensors", "partition-*")


@dataclass(frozen=True, slots=True)
class Verdict:
    """A model that could be served."""

    model: ModelDescription
    features: str
    """A digest of the small copy's configuration and the versions of engine and libraries: what has
    been compared once need not be again."""
    unused: str = ""
    """Tensors of the checkpoint that the model has no use for: it is served without."""


def try_model(
    directory: Path,
    dtype: str | None,
    compared: Collection[str],
    backend: Backend,
    parsers: ParserNames = NO_PARSERS,
    *,
    takes_adapters: bool = False,
    ranks: int = 1,
    on_disk: bool = False,
) -> Verdict:
    """Tries what a worker will do with a model, as far as that takes neither weights nor time.

    Args:
        directory: has the small files, and weights or their headers.
        dtype: name of a torch dtype that weights are converted to. None: as stored.
        compared: `Verdict.features` for which a small copy need not be tried again.
        backend: of the engine that it is to run on.
        parsers: that are to take its answers apart.
        ranks: processes that are to run it together. The small copy runs in one.
        takes_adapters: whether it is to be run with adapters.
        on_disk: whether its experts are to be read as they are used.

    Raises:
        UnsupportedModel: A start would fail, or the tokens be wrong; says why.
    """
    files = load_files(directory, backend.check)
    backend.check_ranks(files.architecture, ranks)
    model = describe(files.architecture, dtype, ranks)
    if takes_adapters:
        check_takes_adapters(files.architecture, backend)
    if on_disk:
        check_experts(files.architecture)
    _try_tokenizer(files)
    backend.parsers(parsers, files.tokenizer)
    model = with_images(model, backend.images(files, model.dtype))
    unused = _try_weights(directory, files.architecture)
    config = small_copy(files.architecture)
    features = _digest(files.architecture, config, backend)
    if features not in compared:
        encodes = files.architecture.use.purpose.task is not Task.GENERATE
        if encodes:
            try_encoding(files.architecture, config)
        else:
            try_engine(files.architecture, config, backend)
    return Verdict(model, features, unused)


def small_copy(architecture: Architecture) -> Any:
    """The configuration of a small copy of the model.

    Raises:
        UnsupportedModel: Its class takes none.
    """
    with refusing(f"{_name(architecture)} could not be tried on a small copy of its config.json"):
        config = tiny(architecture.config)
        if architecture.quantisation:
            config.quantization_config = with_groups(config.quantization_config, _GROUP)
        return config


def try_engine(architecture: Architecture, config: Any, backend: Backend) -> None:
    """Compares what the engine gives on a small copy with transformers' own `generate`.

    Args:
        architecture: of the model.
        config: of its small copy.
        backend: of the engine.

    Raises:
        UnsupportedModel: They differ, or either fails; names the feature if one is to blame.
    """
    name, model_class = _name(architecture), architecture.model_class
    quantisation = replace(architecture, config=config).quantisation
    if quantisation:
        try_quantised(architecture, config, quantisation, backend)
        config = _with_plain_weights(config)
    try:
        _compare(model_class, config, backend)
    except UnsupportedModel as error:
        blamed = to_blame(model_class, config, lambda other: _works(model_class, other, backend))
        raise UnsupportedModel(
            f"{name} is not supported by {backend.name} because of {blamed}: {error.message}",
            metadata={"architecture": name},
        ) from error


def try_quantised(
    architecture: Architecture, config: Any, quantisation: Quantisation, backend: Backend
) -> None:
    """Compares what the engine gives with what its quantised weights stand for.

    Args:
        architecture: of the model.
        config: of its small copy.
        quantisation: that this is to have.
        backend: of the engine.

    Raises:
        UnsupportedModel: They differ, or either fails.
    """
    try:
        with refusing("a small copy of it cannot be quantised"):
            model = architecture.model_class(config).eval()
            randomise(model)
            model.to(getattr(torch, quantisation.dtypes[-1]))
            quantise(model, quantisation)
        _run(model, config, backend, ALIKE)
    except UnsupportedModel as error:
        raise UnsupportedModel(
            f"{_name(architecture)} is quantised, which is not supported by {backend.name} as it "
            f"is here: {error.message}",
            metadata={"architecture": _name(architecture)},
        ) from error


def _with_plain_weights(config: Any) -> Any:
    fields = {name: one for name, one in config.to_dict().items() if name != "quantization_config"}
    return type(config).from_dict(fields)


def try_encoding(architecture: Architecture, config: Any) -> None:
    """Compares what a small copy makes of texts side by side with what it makes of each alone.

    Args:
        architecture: of the model.
        config: of its small copy.

    Raises:
        UnsupportedModel: They differ, or either fails.
    """
    name, small = _name(architecture), replace(architecture, config=config)
    try:
        with refusing("a small copy of it does not run"):
            model = small.made(config).eval()
            randomise(model)
            vocabulary = config.get_text_config().vocab_size
            compare_encodings(model, small.use.purpose, vocabulary, seen_tokens(small))
    except UnsupportedModel as error:
        raise UnsupportedModel(
            f"{name} is not supported: {error.message}", metadata={"architecture": name}
        ) from error


def _compare(model_class: Any, config: Any, backend: Backend) -> None:
    with refusing("a small copy of it cannot be built"):
        model = model_class(config).eval()
        randomise(model)
    _run(model, config, backend, EXACT)


def _run(model: Any, config: Any, backend: Backend, measure: Measure) -> None:
    vocabulary = config.get_text_config().vocab_size
    try:
        with refusing("a small copy of it does not run on a paged cache"):
            compare(model, vocabulary, context_tokens(config), backend, measure)
    except NoCapacity as error:  # the cache is as large as books of ours say that it has to be
        raise UnsupportedModel(f"a small copy of it does not fit: {error.message}") from error


def _works(model_class: Any, config: Any, backend: Backend) -> bool:
    try:
        _compare(model_class, config, backend)
    except UnsupportedModel:
        return False
    return True


def _try_tokenizer(files: ModelFiles) -> None:
    with refusing("the model's tokenizer does not work"):
        ids = files.tokenizer(_TEXT)["input_ids"]
        files.vocabulary.decode(ids)
    if not ids:
        raise UnsupportedModel("the model's tokenizer makes no tokens of a text")


def _try_weights(directory: Path, architecture: Architecture) -> str:
    """Compares the tensors with the model's, where there are weights, or holes in their place.

    Of a checkpoint that is held in memory alone there are only the small files and the manifest;
    its weights were tried when it was looked at first, at its source.

    Returns:
        The tensors that the model has no use for.
    """
    if not any(next(directory.glob(form), None) for form in _WEIGHTS):
        return ""
    found = inspect(LocalSource(directory))
    return check_fit(architecture, {header.name: header for header in found.tensors})


def _digest(architecture: Architecture, config: Any, backend: Backend) -> str:
    fields = {name: value for name, value in config.to_dict().items() if name not in _TELLS_NOTHING}
    versions = (*backend.versions, tokenizers.__version__)
    use = architecture.use
    told = [] if use.purpose.task is Task.GENERATE else [repr(use), _name(architecture)]
    text = json.dumps([fields, versions, *told], sort_keys=True, default=repr)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _name(architecture: Architecture) -> str:
    name: str = architecture.model_class.__name__
    return name
