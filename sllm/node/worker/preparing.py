"""A model before its weights are there: what is made of its small files, and its KV cache to be."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from sllm.embedding.purpose import PASS_TOKENS
from sllm.errors import NoCapacity
from sllm.node.worker.backends.interface import Backend
from sllm.node.worker.engine.interface import Capacity
from sllm.node.worker.messages import (
    DEFAULT_CONCURRENCY,
    NO_PARSERS,
    ModelDescription,
    ParserNames,
)
from sllm.node.worker.model.description import context_tokens, describe, kv_bytes_per_token
from sllm.node.worker.model.device_weights import warm_up_device
from sllm.node.worker.model.module import ModelFiles, load_files
from sllm.node.worker.model.parsing import Parsers
from sllm.node.worker.model.seeing import ImageReader, with_images
from sllm.node.worker.model.texts import Texts

DEFAULT_KV_TOKENS: Final = 8192


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How a deployment wants its model run."""

    engine: str
    kv_cache_tokens: int | None
    """None: as many as `DEFAULT_KV_TOKENS`."""
    max_concurrency: int | None
    """Requests at once. None: `DEFAULT_CONCURRENCY`."""
    dtype: str | None = None
    """Name of a torch dtype that weights have been converted to. None: as stored."""
    parsers: ParserNames = NO_PARSERS
    """That take answers in conversations apart."""
    ranks: int = 1
    """Processes that run it together."""
    takes_adapters: bool = False
    """Whether requests may name adapters."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """How preparing went."""

    seconds: float
    model: ModelDescription
    """What the configuration says of it."""
    warm_up: float | None
    """Of the seconds, those at their beginning that a first use of the device took, if any."""


@dataclass(frozen=True, slots=True)
class PreparedModel:
    """What a worker has of its model before the weights are there."""

    files: ModelFiles
    options: EngineOptions
    warm_up: float | None
    texts: Texts
    description: ModelDescription
    parsers: Parsers | None
    images: ImageReader | None


def prepare_model(directory: Path, options: EngineOptions, backend: Backend) -> PreparedModel:
    """Reads a model's small files, and sees whether it can be run as a deployment wants it.

    Raises:
        UnsupportedModel: The engine cannot run it.
    """
    warm_up = warm_up_device()
    files = load_files(directory, backend.check)
    backend.check_ranks(files.architecture, options.ranks)
    description = describe(files.architecture, options.dtype, options.ranks)
    parsers = backend.parsers(options.parsers, files.tokenizer)
    images = backend.images(files, description.dtype)
    described = with_images(description, images)
    return PreparedModel(files, options, warm_up, Texts(files), described, parsers, images)


def capacity_of(
    prepared: PreparedModel,
    backend: Backend,
    dtype: torch.dtype,
    kv_bytes: int,
    more_kv_bytes: int = 0,
) -> Capacity:
    """The KV cache that an engine is to have in so much memory, and may come to have in more.

    Raises:
        NoCapacity: There is no room for one.
    """
    options = prepared.options
    config, ranks = prepared.files.architecture.config, options.ranks
    per_token = ranks * kv_bytes_per_token(config, dtype, ranks)
    tokens = min(options.kv_cache_tokens or DEFAULT_KV_TOKENS, kv_bytes // per_token)
    if backend.whole_pages:
        tokens -= tokens % backend.page_tokens
    if not tokens:
        least = backend.page_tokens if backend.whole_pages else 1
        raise NoCapacity(
            f"the KV cache is too small: {backend.name} needs room for {least} tokens at least, of "
            f"{per_token} bytes each, and has {kv_bytes} bytes"
        )
    more = more_kv_bytes // per_token
    return Capacity(
        kv_tokens=tokens,
        max_requests=options.max_concurrency or DEFAULT_CONCURRENCY,
        takes_adapters=options.takes_adapters,
        more_kv_tokens=more - more % backend.page_tokens,
        least_kv_tokens=min(tokens, context_tokens(config)),
    )


def pass_tokens(prepared: PreparedModel, kv_bytes: int) -> int:
    """Tokens that one pass of a model that embeds or scores may have in so much memory.

    0 bytes: from a time when none was set aside.
    """
    per_token = prepared.description.kv_bytes_per_token
    return min(PASS_TOKENS, kv_bytes // per_token) if kv_bytes else PASS_TOKENS
