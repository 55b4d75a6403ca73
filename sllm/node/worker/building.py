"""A model built over its weights, wherever these are."""

import time
from dataclasses import dataclass

from sllm.errors import UnsupportedModel
from sllm.node.worker.backends.interface import Backend, Loaded
from sllm.node.worker.engine.group import Group
from sllm.node.worker.experts.on_demand import OnDemand, WeightsOnDisk
from sllm.node.worker.model.device_weights import DeviceWeights
from sllm.node.worker.model.held_weights import HeldWeights, PooledWeights, hold
from sllm.node.worker.model.module import ModelFiles

GivenWeights = PooledWeights | DeviceWeights | WeightsOnDisk
"""Where a model's weights are."""


@dataclass(frozen=True, slots=True)
class BuiltModel:
    """A model over its weights."""

    held: HeldWeights
    loaded: Loaded
    experts: OnDemand | None = None
    """Of weights on disk, which come as they are used. None: all are in memory."""
    disk_seconds: float = 0.0
    """For reading what is used at any time of weights on disk."""
    disk_bytes: int = 0
    """How much that was."""


def build(
    files: ModelFiles, backend: Backend, weights: GivenWeights, pool_fd: int, group: Group
) -> BuiltModel:
    """Builds a model over its weights. It takes long.

    Raises:
        InvalidArgument: A tensor is not in what was given.
        DeviceFailed: The device's memory cannot be opened.
        UnsupportedModel: The weights are not those of the model, or cannot stay on disk.
        NoCapacity, CheckpointCorrupt, CheckpointUnreadable: Of weights on disk.
    """
    if isinstance(weights, WeightsOnDisk):
        return _build_on_disk(files, backend, weights)
    held = hold(pool_fd, weights)
    loaded = backend.load(files, held.given, on_device=held.on_device, group=group)
    return BuiltModel(held, loaded)


def _build_on_disk(files: ModelFiles, backend: Backend, weights: WeightsOnDisk) -> BuiltModel:
    """Reads what is used at any time, and builds the model; experts come as they are used.

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
    return BuiltModel(held, loaded, experts, seconds, read)
