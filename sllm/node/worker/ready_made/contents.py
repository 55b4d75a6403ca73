"""What a ready-made checkpoint holds, and how it is written and read.

It is a checkpoint like any other, with tensors that are named as the engine names them. Those of
packed weights are bytes; a small file beside them says what they are. Of a model that several ranks
run, it holds what each of them reads.
"""

import json
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import torch

from sllm.checkpoint.format import strict_json
from sllm.checkpoint.format.form import FORM_FILE, WeightForm, contents_file, form_file
from sllm.checkpoint.format.layout import PARTITION_BYTES
from sllm.checkpoint.format.manifest import corrupt
from sllm.checkpoint.saving.saving import write_tensors
from sllm.errors import UnsupportedModel
from sllm.node.worker.ready_made.packed_weight import PackedWeight

_RANK: Final = "rank:"
_PACKED: Final = "packed:"
"""Begins the names of packed weights."""
_VERSION: Final = 1
_MAX_SIZE: Final = 1 << 31
"""Of a dimension: what oneDNN counts to."""


@dataclass(frozen=True, slots=True)
class ReadyMade:
    """A model's weights as its engine reads them."""

    plain: Mapping[str, torch.Tensor]
    """By the engine's names."""
    packed: Mapping[str, PackedWeight]
    """By the engine's names of the layers that they are the weights of."""
    dtype: torch.dtype
    """In which the model is run."""
    replaced: Mapping[str, str] = field(default_factory=dict)
    """Names of tensors of the checkpoint that packed weights stand for, by the layers' names; where
    an engine has to be told."""

    @property
    def nbytes(self) -> int:
        """Of all of them."""
        plain = sum(one.nbytes for one in self.plain.values())
        return plain + sum(one.blocks.nbytes for one in self.packed.values())


Weights = Mapping[str, torch.Tensor] | ReadyMade
"""A checkpoint's tensors by their names there, or what was made of them."""


def write(
    ready: ReadyMade, directory: Path, chunk_bytes: int, form: WeightForm, rank: int = 0
) -> None:
    """Writes a checkpoint, flushed to the disk; of several ranks, the part of one.

    Args:
        ready: what it holds.
        directory: does not exist yet.
        chunk_bytes: of the checkpoint's chunks.
        form: what it is for, but for the dtype, which is that of what it holds.
        rank: which one reads it.

    Raises:
        UnsupportedModel: a name is already what a packed weight would be called.
        OSError: the disk is full, or fails.
    """
    packed = {_PACKED + name: weight.blocks for name, weight in ready.packed.items()}
    if clash := ready.plain.keys() & packed.keys():
        raise UnsupportedModel(f"a tensor is named {min(clash)}, as packed weights are")
    prefix = _prefix(rank)
    tensors = {prefix + name: one for name, one in {**ready.plain, **packed}.items()}
    files = {contents_file(rank): json.dumps(_described(ready)).encode()}
    if not rank:
        files[FORM_FILE] = form_file(replace(form, dtype=_name(ready.dtype)))
    write_tensors(tensors, directory, chunk_bytes, PARTITION_BYTES, files)


def read(directory: Path, tensors: Mapping[str, torch.Tensor], rank: int = 0) -> ReadyMade:
    """What a checkpoint holds for one rank.

    Args:
        directory: of its small files.
        tensors: its tensors, by name.
        rank: which one reads it.

    Raises:
        CheckpointCorrupt: it is not what `write` has written.
    """
    path = directory / contents_file(rank)
    own = _of_rank(tensors, rank)
    try:
        described = strict_json.parse(path.read_bytes())
        if described["version"] != _VERSION:
            raise corrupt(path, f"is of version {described['version']}, not {_VERSION}")
        descriptors = [b64decode(one) for one in described["descriptors"]]
        dtype = _dtype(described["dtype"])
        packed = {
            one["name"]: PackedWeight(
                _shape(one["shape"]),
                _dtype(one["dtype"]),
                own[_PACKED + one["name"]],
                descriptors[one["descriptor"]],
            )
            for one in described["packed"]
        }
        replaced = {one["name"]: one["replaces"] for one in described["packed"] if one["replaces"]}
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise corrupt(path, f"does not describe the checkpoint: {error!r}") from error
    plain = {name: one for name, one in own.items() if not name.startswith(_PACKED)}
    return ReadyMade(plain, packed, dtype, replaced)


def _prefix(rank: int) -> str:
    """Begins the names of what all ranks but the first read."""
    return f"{_RANK}{rank}:" if rank else ""


def _of_rank(tensors: Mapping[str, torch.Tensor], rank: int) -> dict[str, torch.Tensor]:
    """By the names that the rank's engine has for them."""
    if prefix := _prefix(rank):
        own = ((name, one) for name, one in tensors.items() if name.startswith(prefix))
        return {name.removeprefix(prefix): one for name, one in own}
    return {name: one for name, one in tensors.items() if not name.startswith(_RANK)}


def _described(ready: ReadyMade) -> dict[str, Any]:
    """As JSON. Layers of one shape have one descriptor, which is long."""
    descriptors = list(dict.fromkeys(one.descriptor for one in ready.packed.values()))
    weights = [
        {
            "name": name,
            "shape": one.shape,
            "dtype": _name(one.dtype),
            "descriptor": descriptors.index(one.descriptor),
            "replaces": ready.replaced.get(name),
        }
        for name, one in ready.packed.items()
    ]
    return {
        "version": _VERSION,
        "dtype": _name(ready.dtype),
        "packed": weights,
        "descriptors": [b64encode(one).decode() for one in descriptors],
    }


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _shape(value: Any) -> tuple[int, int]:
    rows, columns = value
    if not all(type(size) is int and 0 < size <= _MAX_SIZE for size in (rows, columns)):
        raise ValueError(f"{value!r} is no shape of a weight")
    return rows, columns


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name)
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"{name} is no dtype")
    return dtype
