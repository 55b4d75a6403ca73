"""Adapters held against their base before they are deployed: by headers and names alone."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from sllm.embedding.purpose import Task
from sllm.errors import UnsupportedAdapter
from sllm.node.worker.backends.interface import Backend
from sllm.node.worker.engine.adapted_module import layer_sizes
from sllm.node.worker.model.adapter_files import TensorForm, adapter_layers, check_fits
from sllm.node.worker.model.description import Architecture, load_architecture
from sllm.node.worker.model.refusing import refusing


@dataclass(frozen=True, slots=True)
class AdapterVerdict:
    """An adapter that fits."""

    rank: int
    """The greatest of all that it adds."""
    target_modules: tuple[str, ...]
    """Last parts of the names of the layers that it adds to, in order."""


def try_adapter(
    directory: Path, tensors: Path, base: Path, max_rank: int, backend: Backend
) -> AdapterVerdict:
    """Looks whether what an adapter adds to is there in its base, and as large.

    Args:
        directory: has the adapter's settings.
        tensors: lists its tensors, as `DescribeAdapter` has it.
        base: has the base's small files.
        max_rank: that adapters of the base may have.
        backend: of the engine that the base runs on.

    Raises:
        UnsupportedAdapter: It does not fit; says what, with the numbers.
        UnsupportedModel: The engine takes no adapters for such a base.
    """
    architecture = load_architecture(base, backend.check)
    check_takes_adapters(architecture, backend)
    forms = [TensorForm(*one) for one in json.loads(tensors.read_bytes())]
    layers = adapter_layers(directory, forms)
    with refusing("the base's layers cannot be told"), torch.device("meta"):
        there = layer_sizes(architecture.made(architecture.config))
    check_fits(layers, there, max_rank)
    targets = sorted({name.rpartition(".")[2] for name in layers})
    return AdapterVerdict(max(one.rank for one in layers.values()), tuple(targets))


def check_takes_adapters(architecture: Architecture, backend: Backend) -> None:
    """Refuses a base whose engine takes no adapters for it.

    Raises:
        UnsupportedAdapter: It does not generate.
        UnsupportedModel: The engine does not; says why.
    """
    if architecture.use.purpose.task is not Task.GENERATE:
        raise UnsupportedAdapter(
            f"{architecture.name} is a model to {architecture.use.purpose.task} with; adapters are "
            "served over models that generate"
        )
    backend.check_adapters(architecture)
