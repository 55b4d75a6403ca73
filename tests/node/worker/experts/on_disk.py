"""Mixtures of experts on disk, for tests."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sllm.checkpoint.format.experts import expert_bytes
from sllm.checkpoint.importing.import_plan import plan_import
from sllm.checkpoint.importing.importer import import_checkpoint
from sllm.checkpoint.sources.sources import LocalSource, inspect
from sllm.node.worker.experts.keeping import Keeping
from sllm.node.worker.experts.on_demand import OnDemand, WeightsOnDisk
from sllm.node.worker.model.description import load_architecture
from sllm.node.worker.model.module import build_module

CHUNK_BYTES = 64 * 1024


def imported(model: Path, destination: Path, memory: float = 1.0) -> WeightsOnDisk:
    """A model as a node has it on disk.

    Args:
        model: in Hugging Face format.
        destination: of the checkpoint.
        memory: what its experts may have, as a share of what they take; as much as one layer's at
            least.
    """
    manifest = import_checkpoint(
        plan_import(inspect(LocalSource(model)), None),
        destination,
        chunk_bytes=CHUNK_BYTES,
        progress=lambda read, total: None,
        cancelled=lambda: False,
    )
    experts = expert_bytes(manifest.tensors)
    budget = max(int(experts.total * memory), experts.largest_layer) if experts else 0
    return WeightsOnDisk(destination, manifest.partitions, manifest.tensors, budget)


@contextmanager
def on_demand(
    weights: WeightsOnDisk, keeping: Keeping | None = None
) -> Iterator[tuple[OnDemand, Any]]:
    """The model over such weights, until the block ends."""
    found = OnDemand(weights)
    try:
        found.read_resident()
        module = build_module(load_architecture(weights.directory), found.tensors())
        found.begin(module, keeping)
        yield found, module
    finally:
        found.close()
