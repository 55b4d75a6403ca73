"""Safetensors directories made into checkpoints: `sllm.checkpoint.pack`."""

import os
from collections.abc import Callable
from pathlib import Path

from sllm.checkpoint.files.atomic_directory import atomic_directory
from sllm.checkpoint.format.manifest import CHUNK_BYTES
from sllm.checkpoint.format.manifest_file import MANIFEST_FILE
from sllm.checkpoint.importing.import_plan import plan_import
from sllm.checkpoint.importing.importer import import_checkpoint
from sllm.checkpoint.sources.sources import LocalSource, find_files
from sllm.errors import InvalidSource


def pack(
    source_dir: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    dtype: str | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> str:
    """Writes what a safetensors directory holds as a checkpoint made for loading.

    It streams: whatever the model's size, a few chunks of 16 MiB are held in memory. The checkpoint
    appears under its name when all of it is on the disk, or not at all.

    Example:
        checkpoint.pack("/models/safetensors", "/models/packed", dtype="bfloat16")

    Args:
        source_dir: safetensors in one file or in shards; a model's small files are carried along.
        destination: a directory that is not there yet.
        dtype: float32, bfloat16 or float16, to convert plain floating tensors to; None: all stay
            as they are.
        progress: told the bytes read so far and those to read.

    Returns:
        The checkpoint's digest: it names the content, wherever it lies.

    Raises:
        SourceNotFound: there is no such directory.
        InvalidSource: it holds no safetensors, or cannot be read.
        InvalidArgument: `dtype` is not one of these, or `destination` cannot be written.
        CheckpointCorrupt: the source is damaged, or was changed meanwhile; names the file.
        NoCapacity: the disk is full.
    """
    source = Path(source_dir).absolute()
    if (source / MANIFEST_FILE).is_file():
        raise InvalidSource(f"{source} is packed already: it has a {MANIFEST_FILE}")
    plan = plan_import(find_files(LocalSource(source)), dtype)
    with atomic_directory(Path(destination)) as directory:
        manifest = import_checkpoint(
            plan,
            directory,
            chunk_bytes=CHUNK_BYTES,
            progress=progress or (lambda done, total: None),
            cancelled=lambda: False,
        )
    return manifest.digest
