"""Bytes that come and go while their addresses stay."""

import ctypes
import errno
import os
import subprocess
import sys
from mmap import PAGESIZE
from random import Random

import psutil
import pytest

from sllm.errors import NoCapacity
from sllm.node.worker.experts import memory
from sllm.node.worker.experts.memory import Span, SparseMemory, pages_bytes

KEPT = Span(0, 0, 100)
SPANS = [Span(0, 100, PAGESIZE + 50), Span(0, PAGESIZE + 50, 3 * PAGESIZE), Span(1, 8, 5000)]


def made() -> SparseMemory:
    found = SparseMemory([4 * PAGESIZE, 2 * PAGESIZE])
    write(found, KEPT, b"k")
    found.seal([KEPT], SPANS)
    return found


def write(of: SparseMemory, span: Span, letter: bytes) -> None:
    size = span.end - span.begin
    ctypes.memmove(of.address_of(span.partition, span.begin), letter * size, size)


def read(of: SparseMemory, span: Span) -> bytes:
    return ctypes.string_at(of.address_of(span.partition, span.begin), span.end - span.begin)


def is_in_reach(of: SparseMemory, span: Span) -> bool:
    """Whether the kernel lets a span be read: it would end whoever did it if not."""
    there, here = os.pipe()
    try:
        os.write(here, of.buffer(span.partition)[span.begin : span.end])
    except OSError as error:
        if error.errno != errno.EFAULT:
            raise
        return False
    finally:
        os.close(there)
        os.close(here)
    return True


def test_neighbours_keep_their_bytes_whatever_comes_and_goes_beside_them() -> None:
    found = made()
    for letter, span in zip(b"abc", SPANS, strict=True):
        found.bring(span)
        write(found, span, bytes([letter]))
    found.drop(SPANS[0])
    assert set(read(found, KEPT)) == set(b"k")
    assert set(read(found, SPANS[1])) == set(b"b")
    found.bring(SPANS[0])
    write(found, SPANS[0], b"d")
    found.drop(SPANS[1])
    assert set(read(found, SPANS[0])) == set(b"d")
    assert set(read(found, SPANS[2])) == set(b"c")
    assert set(read(found, KEPT)) == set(b"k")


@pytest.mark.parametrize("seed", range(20))
def test_spans_that_take_the_memory_of_others_have_their_own_bytes(seed: int) -> None:
    """Wherever they begin; those that are there keep theirs, and the others are out of reach."""
    chance = Random(seed)
    shift, size = chance.choice([0, 100, PAGESIZE - 8]), chance.choice([1, 3]) * PAGESIZE
    size += chance.choice([0, 0, 24])
    spans = [Span(0, shift + size * one, shift + size * (one + 1)) for one in range(8)]
    kept = Span(0, 0, shift)
    found = SparseMemory([shift + 8 * size + 10])
    write(found, kept, b"k")
    found.seal([kept] if shift else [], spans)
    there: dict[Span, bytes] = {}
    for turn in range(60):
        gone = chance.sample(sorted(there), chance.randint(0, min(2, len(there))))
        absent = [one for one in spans if one not in there]
        coming = chance.sample(absent, min(len(absent), chance.randint(0, 2)))
        found.exchange(gone, coming)
        for span in gone:
            del there[span]
        for span in coming:
            there[span] = bytes([65 + turn % 50])
            write(found, span, there[span])
        for span, letter in there.items():
            assert set(read(found, span)) == set(letter)
        for span in set(spans) - set(there):
            inner = Span(0, -(-span.begin // PAGESIZE) * PAGESIZE, span.end // PAGESIZE * PAGESIZE)
            if inner.begin < inner.end:
                assert not is_in_reach(found, inner)
    assert set(read(found, kept)) <= set(b"k")


def test_memory_of_others_is_no_more_memory() -> None:
    size = 32 << 20
    first, second = Span(0, 0, size), Span(0, size, 2 * size)
    found = SparseMemory([2 * size])
    found.seal([], [first, second])
    process = psutil.Process()
    found.bring(first)
    write(found, first, b"x")
    before = process.memory_info().rss
    for gone, coming in ((first, second), (second, first)) * 3:
        found.exchange([gone], [coming])
        write(found, coming, b"y")
        assert process.memory_info().rss < before + size // 2


def test_what_is_not_there_is_out_of_reach() -> None:
    found = made()
    last = Span(0, 2 * PAGESIZE, 3 * PAGESIZE)
    assert is_in_reach(found, KEPT)
    assert not is_in_reach(found, last)
    found.bring(SPANS[1])
    assert is_in_reach(found, last)
    found.drop(SPANS[1])
    assert not is_in_reach(found, last)


def test_what_has_gone_takes_no_memory() -> None:
    size = 64 << 20
    found, span = SparseMemory([size]), Span(0, 10, size)
    found.seal([], [span])
    process = psutil.Process()
    before = process.memory_info().rss
    for _ in range(3):
        found.bring(span)
        write(found, span, b"x")
        assert process.memory_info().rss > before + size // 2
        found.drop(span)
        assert process.memory_info().rss < before + size // 2


def test_more_places_than_a_process_may_have_mapped_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "_OTHERS_MAPPED", 1 << 40)
    with pytest.raises(NoCapacity, match="3 places"):
        made()


WITHOUT_MAPPINGS = """
from mmap import PAGESIZE
from pathlib import Path
from sllm import libc
from sllm.checkpoint.files.memory import reserve
from sllm.errors import NoCapacity
from sllm.node.worker.experts.memory import Span, SparseMemory
import ctypes
spans = [Span(0, number * 3 * PAGESIZE, (number + 1) * 3 * PAGESIZE) for number in range(5)]
memory = SparseMemory([20 * PAGESIZE])
memory.seal([], spans)
memory.bring(spans[1])
others = reserve(2 * int(Path("/proc/sys/vm/max_map_count").read_text()) * PAGESIZE, 0)
try:
    for page in range(0, len(others), 2 * PAGESIZE):
        libc.mprotect(ctypes.addressof(others) + page, PAGESIZE, libc.PROT_READ)
except OSError:
    pass
for act in (lambda: memory.exchange(spans[1:2], spans[3:4]), lambda: memory.bring(spans[3])):
    try:
        act()
    except NoCapacity as error:
        print(error.message)
"""


def test_a_kernel_that_has_no_more_to_give_is_told_of_with_what_to_do() -> None:
    command = [sys.executable, "-c", WITHOUT_MAPPINGS]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    told = ran.stdout.splitlines()
    assert len(told) == len(("moved", "brought"))
    assert all("less expert_memory" in one and "vm.max_map_count" in one for one in told)


def test_a_span_takes_whole_pages() -> None:
    assert pages_bytes(Span(0, 10, 20)) == PAGESIZE
    assert pages_bytes(Span(0, PAGESIZE - 1, PAGESIZE + 1)) == 2 * PAGESIZE
