import os
from pathlib import Path

import pytest

from sllm.checkpoint.files import page_cache
from sllm.checkpoint.files.direct_io import DirectFile
from sllm.checkpoint.files.memory import Region
from sllm.checkpoint.format.manifest import BLOCK_BYTES, PartitionEntry

SIZE = 64 * BLOCK_BYTES


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file that was written a moment ago."""
    path = tmp_path / "file"
    path.write_bytes(os.urandom(SIZE))
    return path


def drop(path: Path) -> None:
    """Has the kernel forget a file's pages."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def is_cached(path: Path, offset: int = 0, size: int = SIZE) -> bool:
    with path.open("rb") as file:
        return page_cache.holds(file.fileno(), offset, size)


def read(path: Path, size: int = SIZE) -> bytes:
    region = Region([PartitionEntry("", SIZE, SIZE, ())])
    with DirectFile(path, os.O_RDONLY) as file:
        file.read_into(region.chunk(0, 0), 0, size)
    return bytes(region.buffer(0))


def test_what_was_just_written_is_cached_until_it_is_dropped(file: Path) -> None:
    assert is_cached(file)
    drop(file)
    assert not is_cached(file)


def test_a_part_of_a_file_is_asked_about_alone(file: Path) -> None:
    drop(file)
    with file.open("rb") as opened:
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        os.pread(opened.fileno(), 4 * BLOCK_BYTES, 0)
    assert is_cached(file, 0, 4 * BLOCK_BYTES)
    assert not is_cached(file, 32 * BLOCK_BYTES, 32 * BLOCK_BYTES)


@pytest.mark.parametrize("cached", [True, False])
def test_the_bytes_are_the_same_either_way(file: Path, cached: bool) -> None:
    if not cached:
        drop(file)
    assert read(file) == file.read_bytes()


def test_reading_past_the_page_cache_leaves_it_as_it_was(file: Path) -> None:
    drop(file)
    read(file)
    assert not is_cached(file)


def test_a_file_that_ends_within_a_block_is_read_from_the_cache(file: Path) -> None:
    os.truncate(file, SIZE - 100)
    assert read(file, SIZE - 100)[: SIZE - 100] == file.read_bytes()
