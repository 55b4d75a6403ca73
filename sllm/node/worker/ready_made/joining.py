"""Checkpoints put together to one, without a byte of their weights being written anew."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sllm.checkpoint.files.direct_io import flush_directory
from sllm.checkpoint.format.manifest import Manifest, PartitionEntry, TensorEntry, make_manifest
from sllm.checkpoint.format.manifest_file import read_manifest, write_manifest


def join(parts: Sequence[Path], directory: Path) -> Manifest:
    """Makes one checkpoint of several, whose partitions and small files move into it.

    Args:
        parts: on the disk of `directory`, with no name of a tensor or file in two of them. They
            are gone afterwards.
        directory: does not exist yet.

    Raises:
        CheckpointCorrupt: one of them is not what it was written as.
        OSError: the disk fails.
    """
    directory.mkdir()
    tensors: list[TensorEntry] = []
    partitions: list[PartitionEntry] = []
    manifests = [read_manifest(part) for part in parts]
    for part, manifest in zip(parts, manifests, strict=True):
        first = len(partitions)
        tensors += (replace(one, partition=first + one.partition) for one in manifest.tensors)
        for entry in manifest.partitions:
            name = f"partition-{len(partitions):05}.bin"
            (part / entry.file).rename(directory / name)
            partitions.append(replace(entry, file=name))
        for file in manifest.files:
            (part / file.name).rename(directory / file.name)
    files = [file for manifest in manifests for file in manifest.files]
    joined = make_manifest(tensors, partitions, files)
    write_manifest(directory, joined)
    flush_directory(directory)
    for part in parts:
        shutil.rmtree(part)
    return joined
