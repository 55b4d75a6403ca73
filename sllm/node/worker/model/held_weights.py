"""Weights where the agent holds them, as this process sees them: nothing is copied."""

from dataclasses import dataclass
from pathlib import Path

import torch

from sllm.checkpoint.format.manifest import TensorEntry
from sllm.checkpoint.reading.tensors import tensors_within
from sllm.errors import InvalidArgument
from sllm.node.worker.model.device_weights import (
    DeviceWeights,
    device_tensors,
    open_weights,
)
from sllm.node.worker.model.mapping import map_chunks
from sllm.node.worker.ready_made import contents
from sllm.node.worker.ready_made.contents import Weights


@dataclass(frozen=True, slots=True)
class PooledWeights:
    """Where a checkpoint's weights are in the pool."""

    chunk_bytes: int
    """Of every chunk."""
    partitions: tuple[tuple[int, ...], ...]
    """For each partition its chunks, in the order of its bytes."""
    tensors: tuple[TensorEntry, ...]
    ready_made: Path | None = None
    """Directory of the small files of what was made ready for the engine. None: they are as
    published."""
    awaited: frozenset[int] = frozenset()
    """Chunks that are not there yet, counted over all partitions."""
    borrowed: tuple[range, ...] = ()
    """Layers that others may compute until their weights are there."""


@dataclass(frozen=True, slots=True)
class HeldWeights:
    """Weights in this process: what keeps them where they are, and where that is."""

    address: int
    size_bytes: int
    kept: object
    """What keeps them there: a `Mapping` of the pool's chunks, or something else."""
    tensors: dict[str, torch.Tensor]
    """As they lie there, by their names."""
    given: Weights
    """The same as an engine takes them."""
    on_device: bool


def hold(pool_fd: int, weights: PooledWeights | DeviceWeights, rank: int = 0) -> HeldWeights:
    """Maps or opens weights.

    Args:
        pool_fd: the pool's memfd.
        weights: where they are.
        rank: which of the processes that run the model this is: of what was made ready, it is given
            its part.

    Raises:
        InvalidArgument: A tensor is not in what was given.
        DeviceFailed: The device's memory cannot be opened.
        CheckpointCorrupt: They are not what was made ready.
    """
    if isinstance(weights, DeviceWeights):
        opened = open_weights(weights)
        tensors = device_tensors(opened, weights)
        return HeldWeights(
            opened.address, weights.size_bytes, opened, tensors, tensors, on_device=True
        )
    _check(weights)
    mapping = map_chunks(pool_fd, weights.chunk_bytes, weights.partitions, weights.awaited)
    memory = [
        torch.frombuffer(mapping.buffer(index), dtype=torch.uint8)
        for index in range(len(weights.partitions))
    ]
    tensors = tensors_within(weights.tensors, memory)
    made = weights.ready_made
    given: Weights = tensors if made is None else contents.read(made, tensors, rank)
    return HeldWeights(
        mapping.address, mapping.size_bytes, mapping, tensors, given, on_device=False
    )


def _check(weights: PooledWeights) -> None:
    sizes = [len(chunks) * weights.chunk_bytes for chunks in weights.partitions]
    for tensor in weights.tensors:
        if tensor.partition >= len(sizes) or tensor.offset + tensor.size > sizes[tensor.partition]:
            raise InvalidArgument(
                f"tensor {tensor.name!r} is not within the chunks that were given"
            )
