"""A checkpoint's small files, as they are written."""

import os
from pathlib import Path

import xxhash

from sllm.checkpoint.format.manifest import FileEntry


def write_small_file(path: Path, content: bytes) -> FileEntry:
    """Writes a file, flushed to the disk, and gives its entry in the manifest.

    Raises:
        OSError: the disk is full, or fails.
    """
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return FileEntry(path.name, len(content), xxhash.xxh3_128_hexdigest(content))
