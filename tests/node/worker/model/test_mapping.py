import ctypes
import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch

from sllm import libc
from sllm.node.tiers.pool import Pool
from sllm.node.worker.model.mapping import Mapping, map_chunks

CHUNK = 4096


@pytest.fixture
def pool() -> Iterator[Pool]:
    pool = Pool(16 * CHUNK, CHUNK)
    for chunk in range(16):
        with pool.view(chunk) as view:
            view[:] = bytes([chunk]) * CHUNK
    yield pool
    pool.close()


def mapped_ranges(address: int, size: int) -> int:
    """How many mappings of the pool lie in a range of addresses."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    starts = [int(line.split("-")[0], 16) for line in lines if "sllm-pool" in line]
    return sum(address <= start < address + size for start in starts)


def chunk_order(mapping: Mapping, partition: int) -> list[int]:
    return list(mapping.buffer(partition)[::CHUNK])


def test_scattered_chunks_appear_side_by_side(pool: Pool) -> None:
    mapping = map_chunks(pool.fd, CHUNK, [[7, 3, 4, 5], [0], [15, 14]])
    assert chunk_order(mapping, 0) == [7, 3, 4, 5]
    assert chunk_order(mapping, 1) == [0]
    assert chunk_order(mapping, 2) == [15, 14]
    assert mapping.size_bytes == 7 * CHUNK
    assert mapping.address % (2 << 20) == 0


def test_neighbours_are_mapped_by_one_call(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    mmap, lengths = libc.mmap, []

    def counted(address: int, length: int, *rest: int) -> int:
        lengths.append(length // CHUNK)
        return mmap(address, length, *rest)

    monkeypatch.setattr(libc, "mmap", counted)
    mapping = map_chunks(pool.fd, CHUNK, [[4, 5, 6], [7, 8], [2]])
    assert lengths[1:] == [5, 1]  # after the reservation
    assert [chunk_order(mapping, index) for index in range(3)] == [[4, 5, 6], [7, 8], [2]]


def test_writes_stay_private(pool: Pool) -> None:
    one = map_chunks(pool.fd, CHUNK, [[3, 1]])
    other = map_chunks(pool.fd, CHUNK, [[3, 1]])
    one.buffer(0)[:2] = b"xy"
    assert bytes(one.buffer(0)[:3]) == b"xy\3"
    assert bytes(other.buffer(0)[:2]) == b"\3\3"
    with pool.view(3) as view:
        assert bytes(view[:2]) == b"\3\3"


def test_later_changes_of_the_pool_are_seen_until_a_page_is_touched(pool: Pool) -> None:
    mapping = map_chunks(pool.fd, CHUNK, [[9]])
    with pool.view(9) as view:
        view[:2] = b"ab"
    assert bytes(mapping.buffer(0)[:2]) == b"ab"


def test_tensors_keep_the_memory_after_the_mapping_is_closed(pool: Pool) -> None:
    mapping = map_chunks(pool.fd, CHUNK, [[2, 11]])
    address, size = mapping.address, mapping.size_bytes
    tensor = torch.frombuffer(mapping.buffer(0), dtype=torch.uint8)
    assert tensor.data_ptr() == address
    mapping.close()
    with pytest.raises(ValueError, match="closed"):
        mapping.buffer(0)
    assert tensor[0] == 2
    assert tensor[CHUNK] == 11
    del tensor
    gc.collect()
    assert mapped_ranges(address, size) == 0


def test_mappings_leave_nothing_behind(pool: Pool) -> None:
    process = psutil.Process()
    before = len(process.memory_maps(grouped=False))
    for _ in range(50):
        map_chunks(pool.fd, CHUNK, [[1, 5, 3], [2]]).close()
    assert len(process.memory_maps(grouped=False)) <= before + 2


def test_a_chunk_that_cannot_be_mapped_is_refused(pool: Pool) -> None:
    with pytest.raises(OSError, match="mmap"):
        map_chunks(pool.fd, CHUNK, [[-1]])


def test_addresses_are_those_of_the_buffer(pool: Pool) -> None:
    mapping = map_chunks(pool.fd, CHUNK, [[2], [3]])
    start = ctypes.addressof(ctypes.c_char.from_buffer(mapping.buffer(1)))
    assert start == mapping.address + CHUNK


def test_what_is_not_there_yet_ends_whoever_reads_it(pool: Pool) -> None:
    mapping = map_chunks(pool.fd, CHUNK, [[7, 3], [4, 0]], absent={1, 2})
    content = mapping.buffer(0), mapping.buffer(1)
    assert (content[0][0], content[1][CHUNK]) == (7, 0)
    child = os.fork()
    if not child:
        signal.signal(signal.SIGSEGV, signal.SIG_DFL)
        os._exit(content[0][CHUNK])
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGSEGV
    mapping.bring([1, 2])
    assert (chunk_order(mapping, 0), chunk_order(mapping, 1)) == ([7, 3], [4, 0])


def test_nothing_is_mapped_once_it_is_closed(pool: Pool) -> None:
    mapping = map_chunks(pool.fd, CHUNK, [[7, 3]], absent={1})
    address, size = mapping.address, mapping.size_bytes
    mapping.close()
    mapping.bring([1])
    assert mapped_ranges(address, size) == 0
