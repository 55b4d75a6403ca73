"""Turns at the disk: who goes first, and what a load that ends early leaves."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from sllm.checkpoint.files.direct_io import DirectFile
from sllm.checkpoint.format.manifest import BLOCK_BYTES
from sllm.checkpoint.reading.chunk_reader import ChunkRead, open_file
from sllm.clock import MonotonicClock
from sllm.errors import Cancelled, CheckpointCorrupt
from sllm.node.tiers.pool import Pool
from sllm.node.transfers.read_queue import ReadJob, ReadQueue
from sllm.node.transfers.work import Priority
from tests.support import assert_eventually

CHUNKS = 8


@dataclass
class Load:
    """A load of chunks that are named as they are read."""

    name: str
    priority: Priority = Priority.DEMAND
    cancelled: bool = False
    arrived: int = 0

    def advance(self, size_bytes: int) -> None:
        self.arrived += size_bytes


@dataclass
class Disk:
    """A file, read one chunk at a time, which can be held up."""

    file: DirectFile
    pool: Pool
    queue: ReadQueue
    order: list[str] = field(default_factory=list)
    open: threading.Event = field(default_factory=threading.Event)
    held: threading.Event = field(default_factory=threading.Event)

    def begin(self, load: Load, digest: str = "") -> tuple[ReadJob, "asyncio.Task[None]"]:
        job = ReadJob(
            [
                ChunkRead(self.file, n * BLOCK_BYTES, BLOCK_BYTES, digest, lambda: self._turn(load))
                for n in range(CHUNKS)
            ],
            priority=lambda: load.priority,
            cancelled=lambda: load.cancelled,
            advance=load.advance,
        )
        return job, asyncio.create_task(self.queue.read(job))

    async def go_on(self) -> None:
        """Lets the disk go on, once every load that was begun is in the queue."""
        await asyncio.sleep(0)
        self.open.set()

    def _turn(self, load: Load) -> memoryview:
        self.held.set()
        assert self.open.wait(20), "nobody let the disk go on"
        self.order.append(load.name)
        return self.pool.view(0)


@contextmanager
def a_disk(tmp_path: Path) -> Iterator[Disk]:
    path = tmp_path / "file"
    path.write_bytes(bytes(CHUNKS * BLOCK_BYTES))
    pool, queue = Pool(BLOCK_BYTES, BLOCK_BYTES), ReadQueue(1, MonotonicClock())
    with open_file(path) as file:
        disk = Disk(file, pool, queue)
        try:
            yield disk
        finally:
            disk.open.set()
            queue.close()
    pool.close()


@pytest.fixture
async def disk(tmp_path: Path) -> AsyncIterator[Disk]:
    with a_disk(tmp_path) as disk:
        yield disk


async def hold(disk: Disk) -> "asyncio.Task[None]":
    """Has a first load keep the only thread busy until `disk.open` is set."""
    _, first = disk.begin(Load("first"))
    await assert_eventually(disk.held.is_set)
    return first


async def test_loads_take_turns_by_chunk(disk: Disk) -> None:
    first = await hold(disk)
    loads = [disk.begin(Load(str(n)))[1] for n in range(9)]
    await disk.go_on()
    await asyncio.gather(first, *loads)
    for start in range(1, CHUNKS):
        round_of_all = disk.order[1 + (start - 1) * 10 : 1 + start * 10]
        assert len(set(round_of_all)) == 10


async def test_those_that_are_waited_for_go_first(disk: Disk) -> None:
    first = await hold(disk)
    _, prefetch = disk.begin(Load("prefetch", Priority.PREFETCH))
    _, demand = disk.begin(Load("demand"))
    await disk.go_on()
    await asyncio.gather(first, prefetch, demand)
    assert set(disk.order[-CHUNKS:]) == {"prefetch"}


async def test_a_demand_raises_what_is_under_way(disk: Disk) -> None:
    first = await hold(disk)
    raised = Load("raised", Priority.PREFETCH)
    _, one = disk.begin(Load("prefetch", Priority.PREFETCH))
    _, other = disk.begin(raised)
    raised.priority = Priority.DEMAND
    await disk.go_on()
    await asyncio.gather(first, one, other)
    assert set(disk.order[-CHUNKS:]) == {"prefetch"}


async def test_a_cancelled_load_ends_though_others_go_first(disk: Disk) -> None:
    first = await hold(disk)
    leaving = Load("leaving", Priority.PREFETCH)
    _, task = disk.begin(leaving)
    leaving.cancelled = True
    await disk.go_on()
    with pytest.raises(Cancelled):
        await task
    await first
    assert "leaving" not in disk.order


async def test_what_is_in_flight_is_known_and_bounded(disk: Disk) -> None:
    first = await hold(disk)
    _, second = disk.begin(Load("second"))
    assert disk.queue.in_flight_bytes == BLOCK_BYTES
    await disk.go_on()
    await asyncio.gather(first, second)
    assert disk.queue.in_flight_bytes == 0


async def test_an_error_ends_one_load_and_no_other(disk: Disk) -> None:
    first = await hold(disk)
    job, bad = disk.begin(Load("bad"), digest="0" * 32)
    await disk.go_on()
    with pytest.raises(CheckpointCorrupt):
        await bad
    await first
    assert not job.waiting
    assert not job.running


async def test_digests_and_progress_are_told(disk: Disk) -> None:
    load = Load("only")
    job, task = disk.begin(load)
    await disk.go_on()
    await task
    assert load.arrived == CHUNKS * BLOCK_BYTES
    assert len(set(job.digests)) == 1
    assert job.began is not None
