import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sllm.checkpoint.files.direct_io import DirectFile
from sllm.errors import CheckpointCorrupt

SIZE = 5 * 4096


@pytest.fixture
def memory() -> Iterator[memoryview]:
    with mmap.mmap(-1, SIZE) as mapped, memoryview(mapped) as view:
        yield view


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "partition"
    path.write_bytes(os.urandom(SIZE))
    return path


def test_reads_land_in_the_callers_memory(path: Path, memory: memoryview) -> None:
    with DirectFile(path, os.O_RDONLY) as file:
        file.read_into(memory[8192:16384], 4096)
    assert memory[8192:16384] == path.read_bytes()[4096:12288]


def test_writes_come_from_the_callers_memory(tmp_path: Path, memory: memoryview) -> None:
    memory[:] = os.urandom(SIZE)
    with DirectFile(tmp_path / "new", os.O_WRONLY | os.O_CREAT | os.O_EXCL) as file:
        file.write_from(memory[4096:], 4096)
        file.write_from(memory[:4096], 0)
        file.flush()
    assert (tmp_path / "new").read_bytes() == memory


def test_unaligned_transfers_go_through_the_page_cache(path: Path, memory: memoryview) -> None:
    with DirectFile(path, os.O_RDONLY) as file:
        file.read_into(memory[1:1000], 123)
    assert memory[1:1000] == path.read_bytes()[123:1122]


def test_a_file_system_without_direct_io_will_do(memory: memoryview) -> None:
    """procfs refuses O_DIRECT."""
    path = Path("/proc/self/cmdline")
    content = path.read_bytes()
    with DirectFile(path, os.O_RDONLY) as file:
        file.read_into(memory[: len(content)], 0)
    assert memory[: len(content)] == content


def test_a_file_that_ends_too_early_is_named_with_the_offset(
    path: Path, memory: memoryview
) -> None:
    os.truncate(path, 6000)
    with DirectFile(path, os.O_RDONLY) as file, pytest.raises(CheckpointCorrupt) as caught:
        file.read_into(memory, 0)
    assert caught.value.metadata == {"file": str(path), "offset": "6000"}


def test_short_transfers_are_continued(
    path: Path, memory: memoryview, monkeypatch: pytest.MonkeyPatch
) -> None:
    preadv = os.preadv

    def short(fd: int, buffers: list[memoryview], offset: int) -> int:
        return preadv(fd, [buffers[0][:4096]], offset)

    monkeypatch.setattr(os, "preadv", short)
    with DirectFile(path, os.O_RDONLY) as file:
        file.read_into(memory, 0)
    assert memory == path.read_bytes()
