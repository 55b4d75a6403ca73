import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sllm import machine
from sllm.errors import InvalidArgument
from sllm.node.tiers.pool import Pool
from sllm.node.tiers.shared_memory import Pages
from sllm.node.worker.model.mapping import map_chunks
from tests.properties import examples
from tests.support import wait_until

CHUNK = 8192
HUGE = 2 << 20


@pytest.fixture
def pool() -> Iterator[Pool]:
    pool = Pool(8 * CHUNK + 100, CHUNK)
    yield pool
    pool.close()


def test_capacity_is_rounded_down_to_whole_chunks(pool: Pool) -> None:
    assert (pool.chunk_count, pool.capacity_bytes, pool.used_bytes) == (8, 8 * CHUNK, 0)


@pytest.mark.parametrize(("capacity", "chunk"), [(CHUNK, 100), (CHUNK - 1, CHUNK), (CHUNK, 0)])
def test_sizes_that_make_no_pool_are_refused(capacity: int, chunk: int) -> None:
    with pytest.raises(InvalidArgument):
        Pool(capacity, chunk)


def test_allocation_is_all_or_nothing(pool: Pool) -> None:
    taken = pool.try_allocate(5)
    assert taken == (0, 1, 2, 3, 4)
    assert pool.try_allocate(4) is None
    assert pool.used_bytes == 5 * CHUNK
    assert pool.try_allocate(3) == (5, 6, 7)
    pool.check_integrity()


@pytest.mark.parametrize("chunk", [-1, 8, 3])
def test_what_is_not_allocated_cannot_be_freed(pool: Pool, chunk: int) -> None:
    pool.try_allocate(2)
    with pytest.raises(ValueError, match="not allocated"):
        pool.free([chunk])
    pool.check_integrity()


@examples(50)
@given(st.lists(st.integers(0, 5), max_size=30), st.randoms())
def test_no_chunk_is_ever_lost_or_given_twice(counts: list[int], random: "st.DrawFn") -> None:
    pool = Pool(8 * CHUNK, CHUNK)
    held: list[tuple[int, ...]] = []
    for count in counts:
        taken = pool.try_allocate(count)
        if taken is None:
            pool.free(held.pop(0))
        else:
            held.append(taken)
        chunks = [chunk for group in held for chunk in group]
        assert len(chunks) == len(set(chunks))
        assert pool.used_bytes == len(chunks) * CHUNK
        pool.check_integrity()
    pool.close()


def test_views_show_the_memory_behind_the_descriptor(pool: Pool) -> None:
    with pool.view(3) as view:
        view[:5] = b"hello"
    assert os.pread(pool.fd, 5, 3 * CHUNK) == b"hello"


def test_the_descriptor_cannot_be_shrunk_under_a_mapping(pool: Pool) -> None:
    with pytest.raises(PermissionError):
        os.ftruncate(pool.fd, CHUNK)


def test_populating_backs_every_chunk_with_memory_and_keeps_their_bytes() -> None:
    pool = Pool(32 << 20, 1 << 20)
    with pool.view(0) as view:
        view[:5] = b"hello"
    pool.start_populating()
    wait_until(lambda: os.fstat(pool.fd).st_blocks * 512 == pool.capacity_bytes)
    assert os.pread(pool.fd, 5, 0) == b"hello"
    pool.close()


def test_small_pages_can_be_asked_for() -> None:
    pool = Pool(4 * HUGE, HUGE, huge_pages=False)
    assert pool.pages is Pages.SMALL
    pool.touch(1)
    assert huge_kilobytes(pool) == 0
    pool.close()


def test_chunks_that_are_not_whole_huge_pages_are_in_others() -> None:
    pool = Pool(4 * HUGE, HUGE // 2)
    assert pool.pages is not Pages.RESERVED
    pool.close()


def test_huge_pages_are_taken_where_they_are_given() -> None:
    """What is set aside is there whole, or none of it is taken; others come as it is touched."""
    free = free_huge_pages()
    pool = Pool(4 * HUGE, HUGE)
    assert (pool.pages is Pages.RESERVED) == (free >= 4)
    if pool.pages is Pages.RESERVED:
        assert free_huge_pages() - reserved_huge_pages() <= free - 4
    content = bytes(range(256)) * (HUGE // 256)
    for chunk in range(4):
        pool.touch(chunk)
        with pool.view(chunk) as view:
            view[:] = content
    mapping = map_chunks(pool.fd, HUGE, [[2, 0]], absent={1})
    mapping.bring([1])
    assert bytes(mapping.buffer(0)) == content * 2
    expected = 0 if pool.pages is Pages.SMALL else 4 * HUGE >> 10
    assert huge_kilobytes(pool) == expected
    assert os.fstat(pool.fd).st_blocks * 512 == pool.capacity_bytes
    pool.check_integrity()
    mapping.close()
    pool.close()
    assert free_huge_pages() == free
    if not expected:
        pytest.skip("this kernel gives shared memory no huge pages; without them it works")


def test_a_pool_that_does_not_fit_what_is_set_aside_is_in_other_pages() -> None:
    pool = Pool((free_huge_pages() + 1) * HUGE, HUGE)
    assert pool.pages is not Pages.RESERVED
    pool.close()


def test_huge_pages_that_a_cgroup_does_not_grant_are_not_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine, "limits", lambda: machine.Limits(huge_page_bytes=3 * HUGE))
    pool = Pool(4 * HUGE, HUGE)
    assert pool.pages is not Pages.RESERVED
    pool.close()


def free_huge_pages() -> int:
    return meminfo("HugePages_Free") - reserved_huge_pages()


def reserved_huge_pages() -> int:
    return meminfo("HugePages_Rsvd")


def meminfo(name: str) -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), 0)


def huge_kilobytes(pool: Pool) -> int:
    """Of this process's mapping of a pool, those that lie in huge pages."""
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    for line in lines:
        if line.startswith(f"{pool.base_address:x}-"):
            break
    kinds = ("ShmemPmdMapped:", "Shared_Hugetlb:", "Private_Hugetlb:")
    found = 0
    for line in lines:
        name, value, *_ = line.split()
        if name in kinds:
            found += int(value)
        if name == "VmFlags:":
            break
    return found


def test_closing_leaves_neither_memory_nor_descriptors() -> None:
    process = psutil.Process()
    before = process.num_fds(), process.memory_info().rss
    for _ in range(3):
        pool = Pool(64 << 20, 1 << 20)
        pool.start_populating()
        pool.close()
    assert process.num_fds() <= before[0]  # others' may be closed meanwhile
    assert process.memory_info().rss - before[1] < 32 << 20
