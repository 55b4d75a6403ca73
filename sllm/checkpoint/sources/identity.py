"""One name for what a source is: its weights, and the files that shape what is made of them.

Whoever serves a source compares it: weights of one state and a tokenizer of another, or two
instances of two states, would put two models into one text. It is the same wherever the source lies
and whatever the times of its files say.

Of small models every byte counts. Reading all of a large one would take as long as loading it, so
that blocks of its weights stand for the rest: the beginning of each tensor, and one in so many. A
model that was trained on, merged or converted differs in nearly all of them; what changes between
two blocks alone is found by the digests of chunks, where these are known.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import xxhash

from sllm.checkpoint.format.file_errors import cannot_open, cannot_read
from sllm.checkpoint.format.manifest import Manifest, corrupt
from sllm.checkpoint.format.plain_files import open_plain, read_plain
from sllm.checkpoint.format.room import Room
from sllm.checkpoint.sources.file_names import carried_name
from sllm.checkpoint.sources.sources import LocalSource, SourceFiles, fingerprint, inspect

WHOLE_BYTES = 64 << 20
"""Sources of weights up to this are read as a whole."""
_BLOCK_BYTES = 4096
_STRIDE_BYTES = 64 << 20
"""A block in each of these counts, whatever tensor it belongs to."""
_MOST_BLOCKS = 2048
"""Of one file: those beyond are thinned out evenly, since each may be a seek."""
_READ_BYTES = 1 << 20


def identify(source: LocalSource, known: str) -> str:
    """The identity of a directory's checkpoint.

    Args:
        source: the directory.
        known: its fingerprint when it was looked at.

    Raises:
        SourceNotFound: the directory is not there.
        InvalidSource: it holds no model, or not in a form that can be read.
        CheckpointCorrupt: a file contradicts itself, or was changed meanwhile.
        CheckpointUnreadable: a file cannot be read now.
    """
    files = inspect(source)
    found = packed_identity(files, files.packed) if files.packed else _plain_identity(files)
    if not files.fingerprint == known == fingerprint(source):
        raise corrupt(source.directory, "was changed while it was looked at; try again")
    return found


def packed_identity(files: SourceFiles, manifest: Manifest) -> str:
    """That of its content, which its digest names; small files may have been replaced since."""
    digests = {entry.name: entry.digest for entry in manifest.files}
    for path in files.files:
        if xxhash.xxh3_128_hexdigest(_content(path, files.room)) != digests[carried_name(path)]:
            raise corrupt(path, "is not what was packed")
    return manifest.digest


def _plain_identity(files: SourceFiles) -> str:
    tensors = [
        (tensor.name, tensor.dtype, tensor.shape, tensor.file.name, tensor.offset)
        for tensor in files.tensors
    ]
    small = [
        (carried_name(path), xxhash.xxh3_128_hexdigest(_content(path, files.room)))
        for path in files.files
    ]
    digest = xxhash.xxh3_128(json.dumps([sorted(tensors), sorted(small)]).encode())
    whole = files.size_bytes <= WHOLE_BYTES
    for path in sorted(files.weights):
        starts = [tensor.offset for tensor in files.tensors if tensor.file == path]
        for block in _whole(path, files.room) if whole else _blocks(path, files.room, starts):
            digest.update(block)
    return digest.hexdigest()


def _content(path: Path, room: Room | None) -> bytes:
    try:
        return read_plain(path, room)
    except OSError as error:
        raise cannot_open(path, error) from error


def _whole(path: Path, room: Room | None) -> Iterator[bytes]:
    return _read(path, room, lambda size: range(0, size, _READ_BYTES), _READ_BYTES)


def _blocks(path: Path, room: Room | None, starts: Iterable[int]) -> Iterator[bytes]:
    def offsets(size: int) -> Iterable[int]:
        chosen = sorted({0, *starts, *range(0, size, _STRIDE_BYTES), max(0, size - _BLOCK_BYTES)})
        return chosen[:: -(-len(chosen) // _MOST_BLOCKS)]

    return _read(path, room, offsets, _BLOCK_BYTES)


def _read(
    path: Path, room: Room | None, offsets: Callable[[int], Iterable[int]], count: int
) -> Iterator[bytes]:
    try:
        file = open_plain(path, room)
    except OSError as error:
        raise cannot_open(path, error) from error
    with file:
        for offset in offsets(os.fstat(file.fileno()).st_size):
            try:
                yield os.pread(file.fileno(), count, offset)
            except OSError as error:
                raise cannot_read(path, error, offset) from error
