"""The tensors of a directory's safetensors files: of one file, or of several shards."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from sllm.checkpoint.format import strict_json
from sllm.checkpoint.format.file_errors import cannot_open
from sllm.checkpoint.format.manifest import corrupt
from sllm.checkpoint.format.plain_files import read_plain
from sllm.checkpoint.format.room import Room
from sllm.checkpoint.format.safetensors_header import TensorHeader, read_header
from sllm.checkpoint.sources.file_names import ADAPTER_CONFIG, ADAPTER_WEIGHTS, INDEX, WEIGHTS
from sllm.checkpoint.sources.other_forms import refuse_other_forms, refuse_pointers
from sllm.errors import InvalidSource


def read_shards(directory: Path, paths: Sequence[Path], room: Room) -> tuple[TensorHeader, ...]:
    """The tensors of one file, or of the shards that an index names, or of whatever shards are.

    Args:
        directory: where the files are.
        paths: the files that are there.
        room: where they may lie.

    Raises:
        InvalidSource: there are no safetensors or tensors, or two shards claim the same tensor.
        CheckpointCorrupt: a file is cut short or contradicts itself; names the file.
    """
    tensors = _tensors(directory, paths, room)
    if not tensors:
        raise InvalidSource(
            f"the safetensors in {directory} hold no tensors: there is nothing to serve or to load"
        )
    return tensors


def _tensors(directory: Path, paths: Sequence[Path], room: Room) -> tuple[TensorHeader, ...]:
    names = {path.name for path in paths}
    # What is no part of a model in safetensors was not listed, and is named here all the same.
    refuse_other_forms(directory, {*names, *os.listdir(directory)})
    refuse_pointers(paths, room)
    if WEIGHTS in names:
        return read_header(directory / WEIGHTS, room)
    if INDEX in names:
        return _indexed_tensors(directory, names, room)
    if {ADAPTER_CONFIG, ADAPTER_WEIGHTS} <= names:
        return read_header(directory / ADAPTER_WEIGHTS, room)
    shards = [path for path in paths if path.name.endswith(".safetensors")]
    return _distinct(tensor for shard in shards for tensor in read_header(shard, room))


def _distinct(tensors: Iterable[TensorHeader]) -> tuple[TensorHeader, ...]:
    found: dict[str, TensorHeader] = {}
    for tensor in tensors:
        other = found.setdefault(tensor.name, tensor)
        if other is not tensor:
            raise InvalidSource(
                f"{other.file.name} and {tensor.file.name} both hold {tensor.name!r}, and no "
                f"{INDEX} in {tensor.file.parent} says which counts"
            )
    return tuple(found.values())


def _indexed_tensors(directory: Path, names: set[str], room: Room) -> tuple[TensorHeader, ...]:
    shard_of = _read_index(directory / INDEX, room)
    for shard in sorted(set(shard_of.values()) - names):
        raise corrupt(directory / shard, f"named by {INDEX}, but missing")
    shards = sorted(set(shard_of.values()))
    tensors = [tensor for shard in shards for tensor in read_header(directory / shard, room)]
    named = tuple(tensor for tensor in tensors if shard_of.get(tensor.name) == tensor.file.name)
    for name in sorted(shard_of.keys() - {tensor.name for tensor in named}):
        raise corrupt(directory / shard_of[name], f"has no tensor {name!r}, which {INDEX} names")
    return named


def _read_index(path: Path, room: Room) -> dict[str, str]:
    try:
        index: Any = strict_json.parse(read_plain(path, room))
        shard_of = index["weight_map"]
    except OSError as error:
        raise cannot_open(path, error) from error
    except (ValueError, TypeError, KeyError) as error:
        raise corrupt(path, f"not an index of shards: {error!r}") from error
    if not isinstance(shard_of, dict) or not all(isinstance(s, str) for s in shard_of.values()):
        raise corrupt(path, "weight_map must lead from names to file names")
    return shard_of
