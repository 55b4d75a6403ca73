"""What a ready-made checkpoint holds, and how it is written and read.

It is a checkpoint like any other, with tensors that are named as the engine names them. Those of
packed weights are bytes; a small file beside them says what they are.
"""

import json
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch

from sllm.checkpoint.format.layout import PARTITION_BYTES
from sllm.checkpoint.format.manifest import corrupt
from sllm.checkpoint.saving.saving import write_tensors
from sllm.errors import UnsupportedModel
from sllm.node.worker.ready_made.packed_weight import PackedWeight

_FILE: Final = "ready_made.json"
_PACKED: Final = "packed:"
"""Begins the names of packed weights."""
_VERSION: Final = 1


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


def write(ready: ReadyMade, directory: Path, chunk_bytes: int) -> None:
    """Writes a checkpoint, flushed to the disk.

    Args:
        ready: what it holds.
        directory: does not exist yet.
        chunk_bytes: of the checkpoint's chunks.

    Raises:
        UnsupportedModel: a name is already what a packed weight would be called.
        OSError: the disk is full, or fails.
    """
    packed = {_PACKED + name: weight.blocks for name, weight in ready.packed.items()}
    if clash := ready.plain.keys() & packed.keys():
        raise UnsupportedModel(f"a tensor is named {min(clash)}, as packed weights are")
    files = {_FILE: json.dumps(_described(ready)).encode()}
    write_tensors({**ready.plain, **packed}, directory, chunk_bytes, PARTITION_BYTES, files)


def read(directory: Path, tensors: Mapping[str, torch.Tensor]) -> ReadyMade:
    """What a checkpoint holds.

    Args:
        directory: of its small files.
        tensors: its tensors, by name.

    Raises:
        CheckpointCorrupt: it is not what `write` has written.
    """
    path = directory / _FILE
    try:
        described = json.loads(path.read_bytes())
        if described["version"] != _VERSION:
            raise corrupt(path, f"is of version {described['version']}, not {_VERSION}")
        descriptors = [b64decode(one) for one in described["descriptors"]]
        dtype = _dtype(described["dtype"])
        packed = {
            one["name"]: PackedWeight(
                (one["shape"][0], one["shape"][1]),
                _dtype(one["dtype"]),
                tensors[_PACKED + one["name"]],
                descriptors[one["descriptor"]],
            )
            for one in described["packed"]
        }
        replaced = {one["name"]: one["replaces"] for one in described["packed"] if one["replaces"]}
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise corrupt(path, f"does not describe the checkpoint: {error!r}") from error
    plain = {name: one for name, one in tensors.items() if not name.startswith(_PACKED)}
    return ReadyMade(plain, packed, dtype, replaced)


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


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name)
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"{name} is no dtype")
    return dtype
