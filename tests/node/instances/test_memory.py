"""What instances take of a node's memory: measured of real processes, and kept in the books."""

import asyncio
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sllm.clock import MonotonicClock
from sllm.errors import NoCapacity
from sllm.node.instances.memory import (
    MAX_INSTANCES,
    NodeMemory,
    OwnMemory,
    private_bytes,
)
from sllm.own_memory import Taken
from tests.processes import started
from tests.support import assert_eventually

MIB = 1 << 20
GIB = 1 << 30
FAMILY = """
import mmap, os, sys
pool = mmap.mmap(-1, 48 << 20)  # shared, as the pool is
pool.write(b"x" * (48 << 20))
imported = bytearray(b"x" * (96 << 20))
for _ in range(3):
    told, tell = os.pipe()
    if not os.fork():
        os.close(told)
        own = bytearray(b"x" * (32 << 20))
        seen = sum(pool[::4096]) + sum(imported[::4096])
        os.write(tell, b"!")
        sys.stdin.read()
        os._exit(0)
    os.close(tell)
    os.read(told, 1)
print("ready", flush=True)
sys.stdin.read()
"""
"""A process that maps and holds what three children share, each with memory of its own."""


@pytest.fixture
def family() -> Iterator[tuple[int, list[int]]]:
    """The process id of the parent, and those of its children."""
    command = [sys.executable, "-c", FAMILY]
    with started(command, stdin=subprocess.PIPE) as parent:
        assert parent.stdout
        assert parent.stdout.readline() == "ready\n"
        listed = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text()
        yield parent.pid, [int(pid) for pid in listed.split()]


def _rollup(pid: int, name: str) -> int:
    found = re.search(rf"^{name}: +(\d+) kB$", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M)
    assert found
    return int(found[1]) * 1024


def test_what_is_shared_counts_for_nobody_alone(family: tuple[int, list[int]]) -> None:
    """The pool's pages, and what was there before the fork; whatever others there are."""
    _, children = family
    assert len(children) == 3
    for pid in children:
        assert 32 * MIB <= private_bytes(pid) < 40 * MIB
        assert _rollup(pid, "Pss_Anon") > 50 * MIB  # with its shares of what all have in common


def test_nothing_is_counted_twice_or_left_out(family: tuple[int, list[int]]) -> None:
    """What the children take for themselves, and all that the parent has: the sum of all shares."""
    parent, children = family
    counted = _rollup(parent, "Anonymous") + sum(map(private_bytes, children))
    shares = sum(_rollup(pid, "Pss_Anon") for pid in (parent, *children))
    assert counted == pytest.approx(shares, rel=0.05)


async def test_a_process_is_measured_until_it_has_gone() -> None:
    memory = OwnMemory()
    command = [sys.executable, "-c", "own = bytearray(b'x' * (32 << 20)); print(1); input()"]
    with started(command, stdin=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        measuring = asyncio.create_task(memory.measure([process.pid], lambda: 0, FastClock()))
        await assert_eventually(lambda: memory.bytes > 0)
        assert 32 * MIB <= memory.bytes < 64 * MIB
        assert not measuring.done()
        process.kill()
        process.wait()
        await asyncio.wait_for(measuring, 60)


class FastClock(MonotonicClock):
    """Waits for a moment, whatever is asked for."""

    async def sleep(self, seconds: float) -> None:
        await super().sleep(min(seconds, 0.01))


@pytest.mark.parametrize(
    ("measured", "kv", "own"),
    [
        ([30], 100, 30),
        # What comes later may be the KV cache, up to its size; what is beyond is not.
        ([30, 90, 130], 100, 30),
        ([30, 150], 100, 50),
        ([430, 480], 100, 430),  # a private copy of weights is there from the start
        ([30, 90], 0, 90),  # the KV cache is on a device
        ([30, 150, 40], 100, 30),
    ],
)
def test_what_the_kv_cache_may_take_is_not_counted_twice(
    measured: list[int], kv: int, own: int
) -> None:
    memory = OwnMemory()
    for private in measured:
        memory.take(private * MIB, kv * MIB)
    assert memory.bytes == own * MIB


def test_an_instance_beyond_what_the_memory_holds_is_refused_with_the_numbers() -> None:
    taken = (Taken("moe", 430 * MIB), Taken("small", 30 * MIB), Taken("small", 0))
    memory = NodeMemory(GIB, 500 * MIB, 64 * MIB, taken)
    assert memory.used_bytes == 490 * MIB
    with pytest.raises(NoCapacity, match=r"moe takes about 430\.0 MiB .* 10\.0 MiB of 500\.0 MiB"):
        memory.check_room("moe", "moe", None)
    with pytest.raises(NoCapacity, match=r"new takes about 230\.0 MiB"):
        memory.check_room("new", "new", None)


def test_instances_of_a_node_have_a_bound_of_their_own() -> None:
    taken = (Taken("small", 1),) * MAX_INSTANCES
    NodeMemory(1 << 50, 1 << 50, 1, taken[1:]).check_room("small", "small", None)
    with pytest.raises(NoCapacity, match=f"{MAX_INSTANCES} at most"):
        NodeMemory(1 << 50, 1 << 50, 1, taken).check_room("small", "small", None)


def test_two_first_starts_have_room_for_the_copies_of_both_or_the_second_is_refused() -> None:
    starting = (Taken("a", 0, 400 * MIB),)
    memory = NodeMemory(GIB, 500 * MIB, 64 * MIB, starting)
    assert memory.used_bytes == 464 * MIB
    with pytest.raises(NoCapacity, match=r"b takes about 364\.0 MiB .* 36\.0 MiB of 500\.0 MiB"):
        memory.check_room("b", "b", 300 * MIB)
    memory = NodeMemory(GIB, 828 * MIB, 64 * MIB, starting)
    memory.check_room("b", "b", 300 * MIB)


@given(
    st.integers(0, 2000),
    st.lists(
        st.tuples(
            st.sampled_from("abc"), st.sampled_from([0, 30, 400]), st.sampled_from([None, 0, 350])
        ),
        max_size=30,
    ),
)
def test_what_is_let_in_is_never_more_than_there_is(
    capacity: int, wanted: list[tuple[str, int, int | None]]
) -> None:
    taken: tuple[Taken, ...] = ()
    for deployment, own, private in wanted:
        memory = NodeMemory(4000, capacity, 64, taken)
        try:
            memory.check_room(deployment, deployment, private)
        except NoCapacity:
            continue
        assert memory.used_bytes + memory.expected(deployment, private) <= capacity
        taken = (*taken, Taken(deployment, own, private))
