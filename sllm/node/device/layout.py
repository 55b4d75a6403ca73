"""Where a checkpoint's bytes lie in one allocation of a device: pure arithmetic."""

from dataclasses import dataclass

from sllm.checkpoint.format.manifest import Manifest

ALIGNMENT = 256
"""Bytes. Kernels read vectors of up to 16; allocations of CUDA are aligned like this."""
GRANULE = 2 << 20
"""Bytes. Allocations are made in whole pages of the device, of which none is shared with others:
a page is what another process opens."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where one chunk goes."""

    offset: int
    """Bytes from the start of the allocation."""
    size: int
    """Bytes."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where everything goes."""

    partitions: tuple[int, ...]
    """Offset of each partition in the allocation."""
    chunks: tuple[Target, ...]
    """Of all partitions, one after the other."""
    size_bytes: int
    """Of the allocation."""


def lay_out(manifest: Manifest) -> Layout:
    """Partitions one after the other, each shifted so that its first tensor is aligned.

    In a safetensors file the tensors follow a header of any length; those behind the first are
    mostly of even sizes, so that with the first all of them are aligned.
    """
    leads = _leads(manifest)
    starts: list[int] = []
    end = 0
    for index, entry in enumerate(manifest.partitions):
        start = _aligned(end + leads.get(index, 0), ALIGNMENT) - leads.get(index, 0)
        starts.append(start)
        end = start + entry.size
    chunks = tuple(
        Target(start + offset, min(entry.chunk_size, entry.size - offset))
        for start, entry in zip(starts, manifest.partitions, strict=True)
        for offset in range(0, entry.size, entry.chunk_size)
    )
    return Layout(tuple(starts), chunks, _aligned(max(end, 1), GRANULE))


def on_device_bytes(tensor_bytes: int) -> int:
    """What the allocation of a checkpoint takes, as far as the size of its tensors tells."""
    return _aligned(max(tensor_bytes, 1), GRANULE)


def _leads(manifest: Manifest) -> dict[int, int]:
    """Bytes before the first tensor of each partition that has any."""
    leads: dict[int, int] = {}
    for tensor in manifest.tensors:
        if tensor.size:
            leads[tensor.partition] = min(tensor.offset, leads.get(tensor.partition, tensor.offset))
    return leads


def _aligned(offset: int, unit: int) -> int:
    return -(-offset // unit) * unit
