"""Parts of a checkpoint read in any size, none of which is given unchecked."""

import ctypes
import os
from pathlib import Path
from random import Random

import pytest
import xxhash

from sllm.checkpoint.format.manifest import PartitionEntry
from sllm.errors import CheckpointCorrupt
from sllm.node.worker.experts import reading
from sllm.node.worker.experts.memory import Span
from sllm.node.worker.experts.reading import CheckedReader, by_chunk

CHUNK = 192 << 10
SIZE = 2 * CHUNK + (80 << 10)
CONTENT = Random(0).randbytes(SIZE)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "partition-00000.bin"
    file.write_bytes(CONTENT)
    return file


class Reading:
    """A reader, and the memory that it reads to."""

    def __init__(self, file: Path) -> None:
        chunks = [CONTENT[at : at + CHUNK] for at in range(0, SIZE, CHUNK)]
        digests = tuple(map(xxhash.xxh3_128_hexdigest, chunks))
        self.partitions = (PartitionEntry(file.name, SIZE, CHUNK, digests),)
        self._memory = ctypes.create_string_buffer(SIZE)
        base = ctypes.addressof(self._memory)
        self._reader = CheckedReader(file.parent, self.partitions, lambda _, at: base + at)

    def read(self, begin: int, end: int) -> bytes:
        """What comes of these bytes."""
        ctypes.memset(self._memory, 0, SIZE)
        for parts in by_chunk([Span(0, begin, end)], self.partitions).values():
            self._reader.bring(parts)
        return self._memory.raw[begin:end]


@pytest.mark.parametrize("piece", [64 << 10, 4 << 20])
def test_any_part_is_what_was_written(
    file: Path, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "PIECE_BYTES", piece)
    found, chance = Reading(file), Random(1)
    for _ in range(200):
        begin, end = sorted(chance.sample(range(SIZE + 1), 2))
        assert found.read(begin, end) == CONTENT[begin:end]


def test_a_byte_that_is_another_is_found_at_once_and_later(file: Path) -> None:
    """Wherever it is in the chunk, when that is first read; later, in what is read of it."""
    early, late = Reading(file), Reading(file)
    assert late.read(10, 20) == CONTENT[10:20]
    with file.open("r+b") as content:
        content.seek(CHUNK - 1)
        content.write(bytes([CONTENT[CHUNK - 1] ^ 1]))
    with pytest.raises(CheckpointCorrupt, match="at offset 0: the chunk has the digest"):
        early.read(10, 20)
    assert late.read(10, 20) == CONTENT[10:20]
    with pytest.raises(CheckpointCorrupt, match="at offset 131072: is not what it was"):
        late.read(CHUNK - 2, CHUNK)


def test_a_file_that_ends_before_is_corrupt(file: Path) -> None:
    found = Reading(file)
    os.truncate(file, CHUNK + 100)
    with pytest.raises(CheckpointCorrupt, match="the file ends here"):
        found.read(CHUNK, CHUNK + 1)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointCorrupt, match="partition-00000"):
        Reading(tmp_path / "partition-00000.bin")
