"""What lies where in a checkpoint, without reading its tensors: `sllm.checkpoint.inspect`."""

import os
from dataclasses import dataclass
from pathlib import Path

from sllm.checkpoint.format.manifest import FileEntry, PartitionEntry, TensorEntry
from sllm.checkpoint.format.manifest_file import FORMAT
from sllm.checkpoint.reading.weights import find_weights


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a checkpoint says of itself."""

    path: str
    format: str
    """`sllm-checkpoint` or `safetensors`."""
    version: int | None
    """Major version of the format; None: safetensors, which has none."""
    digest: str | None
    """Names the content; None: safetensors, whose content nobody has digested."""
    size_bytes: int
    """Bytes of all partitions, padding and headers included."""
    tensors: tuple[TensorEntry, ...]
    """In the order in which they lie; each knows its partition, offset and size."""
    partitions: tuple[PartitionEntry, ...]
    """Files of tensor bytes."""
    files: tuple[FileEntry, ...]
    """The model's small files; those of a safetensors directory are not looked at."""


def inspect(path: str | os.PathLike[str]) -> Inspection:
    """Reads a checkpoint's manifest, or the headers of its files, and checks the files' sizes.

    Args:
        path: a packed checkpoint, a directory of safetensors files, or one such file.

    Raises:
        SourceNotFound: nothing is there.
        InvalidSource: it is not a checkpoint, or cannot be read.
        CheckpointCorrupt: a file is missing, cut short or contradicts itself; names the file.
    """
    weights = find_weights(path)
    manifest = weights.manifest
    return Inspection(
        path=str(Path(path)),
        format=FORMAT if weights.packed else "safetensors",
        version=manifest.version if weights.packed else None,
        digest=manifest.digest or None,
        size_bytes=manifest.size_bytes,
        tensors=manifest.tensors,
        partitions=manifest.partitions,
        files=manifest.files,
    )
