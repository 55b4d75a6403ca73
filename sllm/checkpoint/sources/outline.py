"""What is known of a source without its weights, written where nobody else can.

Workers read a model's small files by their paths, with libraries that open what they find there.
"""

from pathlib import Path
from typing import Final

from sllm.checkpoint.format.manifest_file import MANIFEST_FILE
from sllm.checkpoint.format.plain_files import open_plain, read_plain
from sllm.checkpoint.format.room import Room
from sllm.checkpoint.format.safetensors_header import HEADER_LENGTH_BYTES, MAX_HEADER_BYTES
from sllm.checkpoint.sources.file_names import carried_name
from sllm.checkpoint.sources.sources import SourceFiles

_SAFETENSORS: Final = ".safetensors"


def write_outline(files: SourceFiles, directory: Path) -> None:
    """Copies a source's small files, and of each file of weights its header, with a hole after it.

    Args:
        files: what the source consists of.
        directory: empty.

    Raises:
        OSError: a file cannot be read, or the disk is full.
        InvalidSource: one has become a link out of the source.
    """
    for path in files.files:
        (directory / carried_name(path)).write_bytes(read_plain(path, files.room))
    if files.packed:
        manifest = read_plain(files.directory / MANIFEST_FILE, files.room)
        (directory / MANIFEST_FILE).write_bytes(manifest)
    for path in files.weights:
        _write_head(path, files.room, directory / path.name)


def _write_head(path: Path, room: Room | None, copy: Path) -> None:
    with open_plain(path, room) as file, copy.open("wb") as written:
        if path.suffix == _SAFETENSORS:
            head = file.read(HEADER_LENGTH_BYTES)
            length = min(int.from_bytes(head, "little"), MAX_HEADER_BYTES)
            written.write(head + file.read(length))
        written.truncate(file.seek(0, 2))
