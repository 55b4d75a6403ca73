import ctypes
import errno
import gc
import os
from contextlib import closing
from pathlib import Path

import pytest

from sllm import libc
from sllm.checkpoint.files.memory import HugePages, Region, TouchedAhead, reserve
from sllm.checkpoint.format.manifest import BLOCK_BYTES, PartitionEntry
from sllm.clock import ManualClock

MIB = 1 << 20


def region(*sizes: int, chunk_size: int = 4 * MIB) -> Region:
    return Region([PartitionEntry("", size, chunk_size, ()) for size in sizes])


def address(view: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


@pytest.mark.parametrize("sizes", [(5,), (BLOCK_BYTES, 0, 77), (3 * MIB, 5, 9 * MIB + 1)])
def test_partitions_lie_in_one_piece_each_and_chunks_in_them(sizes: tuple[int, ...]) -> None:
    memory = region(*sizes)
    for partition, size in enumerate(sizes):
        whole = memory.buffer(partition)
        assert len(whole) == size
        for index in range(-(-size // (4 * MIB))):
            chunk = memory.chunk(partition, index)
            assert address(chunk) == address(whole) + index * 4 * MIB
            assert address(chunk) % BLOCK_BYTES == 0
            assert len(chunk) % BLOCK_BYTES == 0
            assert len(chunk) >= min(4 * MIB, size - index * 4 * MIB)
            chunk[:] = bytes([partition + 1]) * len(chunk)
    assert all(set(memory.buffer(partition)) <= {partition + 1} for partition in range(len(sizes)))


def test_memory_goes_with_the_last_view() -> None:
    memory = region(8 * MIB)
    view = memory.chunk(0, 0)
    start = address(view)
    del memory
    gc.collect()
    view[0] = 1
    assert _is_mapped(start)
    view.release()
    gc.collect()
    assert not _is_mapped(start)


def _is_mapped(address: int) -> bool:
    lines = Path("/proc/self/maps").read_text().splitlines()
    ranges = [line.split()[0].split("-") for line in lines]
    return any(int(start, 16) <= address < int(end, 16) for start, end in ranges)


class Populated:
    """What was populated, and how long it took each time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
        self.clock = ManualClock()
        self.bytes = 0
        self.small_pages = 0
        self._seconds = seconds
        monkeypatch.setattr(libc, "populate", self._populate)
        monkeypatch.setattr(libc, "advise_small_pages", self._advise_small_pages)

    def _populate(self, address: int, length: int) -> None:
        self.clock.advance(self._seconds)
        self.bytes += length

    def _advise_small_pages(self, address: int, length: int) -> None:
        self.small_pages += length


def test_huge_pages_that_come_fast_are_taken_beforehand(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Populated(monkeypatch, seconds=0.001)
    memory = reserve(32 * MIB, libc.PROT_READ | libc.PROT_WRITE)
    pages = HugePages(ctypes.addressof(memory), 32 * MIB, seen.clock)
    pages.touch(0, 16 * MIB)
    pages.touch(16 * MIB, 30 * MIB)
    assert (seen.bytes, seen.small_pages) == (30 * MIB, 0)


def test_huge_pages_that_come_slowly_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Populated(monkeypatch, seconds=0.02)
    memory = reserve(32 * MIB, libc.PROT_READ | libc.PROT_WRITE)
    pages = HugePages(ctypes.addressof(memory), 32 * MIB, seen.clock)
    pages.touch(0, 16 * MIB)
    pages.touch(16 * MIB, 30 * MIB)
    assert (seen.bytes, seen.small_pages) == (30 * MIB, 32 * MIB)


def test_memory_is_touched_ahead_of_those_who_fill_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Populated(monkeypatch, seconds=0.0)
    partitions = [PartitionEntry("", size, 4 * MIB, ()) for size in (9 * MIB, 0, 5)]
    memory = Region(partitions)
    with closing(TouchedAhead(memory, partitions, threads=2)) as ahead:
        for partition, index in ((0, 0), (0, 1), (0, 2), (2, 0)):
            chunk = ahead.chunk(partition, index)
            assert address(chunk) == address(memory.buffer(partition)) + index * 4 * MIB
    assert seen.bytes >= 9 * MIB + 5


def test_memory_that_cannot_be_had_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(address: int, length: int) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(libc, "populate", refuse)
    partitions = [PartitionEntry("", 64 * MIB, 4 * MIB, ())]
    memory = Region(partitions)
    with (
        closing(TouchedAhead(memory, partitions, threads=2)) as ahead,
        pytest.raises(OSError, match="memory"),
    ):
        ahead.chunk(0, 0)
