"""A worker's model over a checkpoint on disk, whose experts come as they are used."""

import time
from dataclasses import dataclass

from sllm.errors import UnsupportedModel
from sllm.node.worker.backends.interface import Backend, Loaded
from sllm.node.worker.experts.on_demand import OnDemand, WeightsOnDisk
from sllm.node.worker.model.held_weights import HeldWeights
from sllm.node.worker.model.module import ModelFiles


@dataclass(frozen=True, slots=True)
class AttachedOnDisk:
    """A model whose experts are read as they are used."""

    held: HeldWeights
    loaded: Loaded
    experts: OnDemand
    read_seconds: float
    """For what is used at any time."""
    read_bytes: int


def attach_on_disk(files: ModelFiles, backend: Backend, weights: WeightsOnDisk) -> AttachedOnDisk:
    """Reads what is used at any time, and builds the model.

    Raises:
        UnsupportedModel: Its experts cannot be read one by one, or not on this engine.
        NoCapacity: They have less memory than one layer takes.
        CheckpointCorrupt: It is not what was written.
        CheckpointUnreadable: It cannot be read now.
    """
    experts = OnDemand(weights)
    try:
        began = time.monotonic()
        read = experts.read_resident()
        seconds = time.monotonic() - began
        tensors, memory = experts.tensors(), experts.memory
        loaded = backend.load(files, tensors, on_device=False)
        if (parts := loaded.parts()) is None:
            raise UnsupportedModel(
                f"{backend.name} does not run a model whose experts are read as they are used "
                "(expert_memory): deploy with engine 'transformers'"
            )
        experts.begin(parts.whole)
    except BaseException:
        experts.close()
        raise
    held = HeldWeights(
        memory.address, memory.size_bytes, experts, tensors, tensors, on_device=False
    )
    return AttachedOnDisk(held, loaded, experts, seconds, read)
