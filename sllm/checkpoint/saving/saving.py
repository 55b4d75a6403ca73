"""State dicts made into checkpoints: `sllm.checkpoint.save`."""

import os
from collections.abc import Hashable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import torch

from sllm.checkpoint.files.atomic_directory import atomic_directory
from sllm.checkpoint.files.direct_io import flush_directory
from sllm.checkpoint.files.small_file import write_small_file
from sllm.checkpoint.format.dtypes import tensor_bytes
from sllm.checkpoint.format.layout import PARTITION_BYTES, Layout, first_use, plan_layout
from sllm.checkpoint.format.manifest import (
    CHUNK_BYTES,
    Manifest,
    PartitionEntry,
    TensorEntry,
    make_manifest,
)
from sllm.checkpoint.format.manifest_file import write_manifest
from sllm.checkpoint.format.safetensors_header import TensorHeader
from sllm.checkpoint.reading.tensors import TORCH_NAMES
from sllm.checkpoint.saving.partition_writer import MemoryOf, PartitionWriter, ring
from sllm.errors import InvalidArgument

_CARRIERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By bytes of an element, what moves it: torch copies only some of the small dtypes."""


def save(state_dict: Mapping[str, torch.Tensor], path: str | os.PathLike[str]) -> str:
    """Writes tensors as a checkpoint, which appears whole or not at all.

    Tensors may be strided, expanded or on a device: each is written as a contiguous one, and at
    most one at a time is copied for it. Those that share all their memory, being tied, are written
    once and share it again when they are loaded.

    Example:
        digest = checkpoint.save(model.state_dict(), "/models/mine")

    Args:
        state_dict: tensors by name, of any dtype that safetensors has.
        path: a directory that is not there yet.

    Returns:
        The checkpoint's digest: it names the content, wherever it lies.

    Raises:
        InvalidArgument: there are no tensors, something is none, or `path` cannot be written.
        NoCapacity: the disk is full.
    """
    if not state_dict:
        raise InvalidArgument("there are no tensors to save")
    for name, tensor in state_dict.items():
        _check(name, tensor)
    with atomic_directory(Path(path)) as directory:
        manifest = write_tensors(state_dict, directory, CHUNK_BYTES, PARTITION_BYTES)
    return manifest.digest


def write_tensors(
    state_dict: Mapping[str, torch.Tensor],
    directory: Path,
    chunk_bytes: int,
    partition_bytes: int,
    files: Mapping[str, bytes] = MappingProxyType({}),
) -> Manifest:
    """Writes a checkpoint of checked tensors, flushed to the disk.

    Args:
        state_dict: as `save`.
        directory: does not exist yet; give it a temporary name, and rename it afterwards.
        chunk_bytes: size of the checkpoint's chunks.
        partition_bytes: bound of a partition of several tensors.
        files: content of small files, by name.

    Raises:
        OSError: the disk is full, or fails.
    """
    directory.mkdir()
    owners = _owners(state_dict)
    headers = [_header(name, state_dict[name]) for name in dict.fromkeys(owners.values())]
    layout = plan_layout(headers, None, partition_bytes)
    with ThreadPoolExecutor(1, "chunk-write") as background:
        target = _Target(directory, chunk_bytes, ring(chunk_bytes), background)
        partitions = [
            _write_partition(index, layout, state_dict, target)
            for index in range(len(layout.partition_sizes))
        ]
    written = [write_small_file(directory / name, content) for name, content in files.items()]
    manifest = make_manifest(_entries(state_dict, owners, layout), partitions, written)
    write_manifest(directory, manifest)
    flush_directory(directory)
    return manifest


@dataclass(frozen=True, slots=True)
class _Target:
    """Where partitions are written, and by what."""

    directory: Path
    chunk_bytes: int
    memory: MemoryOf
    background: Executor


def _write_partition(
    index: int, layout: Layout, state_dict: Mapping[str, torch.Tensor], target: _Target
) -> PartitionEntry:
    path = target.directory / f"partition-{index:05}.bin"
    size = layout.partition_sizes[index]
    with PartitionWriter(
        path, size, target.chunk_bytes, target.memory, target.background
    ) as writer:
        for entry in layout.tensors:
            if entry.partition == index:
                writer.fill_to(entry.offset)
                _write(contiguous_bytes(state_dict[entry.name]), writer)
        return writer.finish()


def _write(content: memoryview, writer: PartitionWriter) -> None:
    done = 0
    while done < len(content):
        room = writer.room()[: len(content) - done]
        room[:] = content[done : done + len(room)]
        writer.advance(len(room))
        done += len(room)


def contiguous_bytes(tensor: torch.Tensor) -> memoryview:
    """A tensor's elements, side by side in its own memory if they lie so there, or in a copy."""
    plain = tensor.detach().cpu().resolve_conj().resolve_neg()
    carried = plain.view(_CARRIERS[plain.itemsize]).contiguous()
    flat = carried.as_strided((carried.numel(),), (1,))  # of one element, any stride is contiguous
    return flat.view(torch.uint8).numpy().data


def _check(name: object, tensor: object) -> None:
    if not isinstance(name, str):
        raise InvalidArgument(f"the name {name!r} is not text")
    if not isinstance(tensor, torch.Tensor):
        raise InvalidArgument(f"{name!r} is a {type(tensor).__name__}, not a tensor")
    if tensor.layout is not torch.strided or tensor.is_meta:
        raise InvalidArgument(f"{name!r} has no dense memory that could be saved")
    if tensor.dtype not in TORCH_NAMES:
        known = ", ".join(str(dtype).removeprefix("torch.") for dtype in TORCH_NAMES)
        raise InvalidArgument(f"{name!r} is {tensor.dtype}; what can be saved is {known}")
    if tensor.dtype is torch.float4_e2m1fn_x2 and not tensor.dim():
        raise InvalidArgument(f"{name!r} is {tensor.dtype} without a dimension to count pairs in")


def _owners(state_dict: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """For each name, in order of first use, the first one of those that share its memory."""
    first: dict[Hashable, str] = {}
    return {
        name: first.setdefault(_identity(name, state_dict[name]), name)
        for name in sorted(state_dict, key=first_use)
    }


def _identity(name: str, tensor: torch.Tensor) -> Hashable:
    """Equal for tensors whose bytes, written side by side, are the same memory."""
    if not tensor.numel():
        return name
    size = tensor.numel() * tensor.itemsize
    strided = () if tensor.is_contiguous() else (tensor.shape, tensor.stride(), tensor.itemsize)
    return tensor.device, tensor.data_ptr(), size, strided, tensor.is_conj(), tensor.is_neg()


def _header(name: str, tensor: torch.Tensor) -> TensorHeader:
    dtype, shape = _safetensors_form(tensor)
    return TensorHeader(name, dtype, shape, Path(), 0, tensor_bytes(dtype, shape))


def _safetensors_form(tensor: torch.Tensor) -> tuple[str, tuple[int, ...]]:
    """A tensor's dtype and shape as safetensors says them: it counts each F4 of a pair."""
    shape = tuple(tensor.shape)
    if tensor.dtype is torch.float4_e2m1fn_x2:
        shape = (*shape[:-1], shape[-1] * 2)
    return TORCH_NAMES[tensor.dtype], shape


def _entries(
    state_dict: Mapping[str, torch.Tensor], owners: Mapping[str, str], layout: Layout
) -> list[TensorEntry]:
    """An entry for every name: those that are tied lie where the first of them does."""
    written = {entry.name: entry for entry in layout.tensors}
    forms = {name: _safetensors_form(state_dict[name]) for name in owners}
    return [
        replace(written[owner], name=name, dtype=forms[name][0], shape=forms[name][1])
        for name, owner in owners.items()
    ]
