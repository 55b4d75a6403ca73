import asyncio
import ctypes
from collections.abc import AsyncIterator
from functools import partial

import pytest

from sllm.clock import MonotonicClock
from sllm.errors import Cancelled
from sllm.node.device.copy_thread import ChunkCopy, CopyJob, CopyThread
from sllm.node.device.driver import CudaError, Driver
from sllm.node.transfers.work import Priority
from tests.node.device.fake_cuda import UNKNOWN, FakeCuda
from tests.support import assert_eventually

SIZE = 1 << 20


class Stage:
    """A thread, pinned memory to copy from, and memory of the device to copy to."""

    def __init__(self, in_flight: int) -> None:
        self.cuda = FakeCuda()
        self.driver = Driver(self.cuda)
        self.seen: list[tuple[int, float, float]] = []
        self.thread = CopyThread(
            self.driver, 0, MonotonicClock(), lambda *one: self.seen.append(one), in_flight
        )
        self._memory = ctypes.create_string_buffer(SIZE)
        self.source = ctypes.addressof(self._memory)
        self.target = 0
        self.done: list[int] = []

    async def open(self) -> None:
        await self.thread.open()
        await self.thread.run(lambda: self.driver.register(self.source, SIZE))
        self.target = await self.thread.run(lambda: self.driver.allocate(SIZE))

    def job(self, priority: Priority = Priority.DEMAND) -> CopyJob:
        return CopyJob(priority=lambda: priority, advance=lambda _: None)

    def add(self, job: CopyJob, *sizes: int) -> None:
        """Copies that are told apart by their sizes."""
        copies = [
            ChunkCopy(self.source, self.target, size, partial(self.done.append, size))
            for size in sizes
        ]
        self.thread.add(job, copies)

    async def close(self) -> None:
        self.cuda.gate.set()
        await self.thread.run(lambda: self.driver.unregister(self.source))
        await self.thread.run(lambda: self.driver.free(self.target))
        await asyncio.to_thread(self.thread.close)
        assert self.cuda.leaks == {}


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    """One copy in flight, so that the order of turns is the order of copies."""
    stage = Stage(in_flight=1)
    await stage.open()
    yield stage
    await stage.close()


async def hold_up(stage: Stage) -> CopyJob:
    """Has a copy wait in the stream, behind which others queue."""
    stage.cuda.gate.clear()
    first = stage.job()
    stage.add(first, 999)
    await assert_eventually(lambda: first.flying == 1)
    return first


async def test_loads_take_turns_a_chunk_each(stage: Stage) -> None:
    await hold_up(stage)
    one, other = stage.job(), stage.job()
    stage.add(one, 11, 12, 13)
    stage.add(other, 21, 22, 23)
    stage.cuda.gate.set()
    await asyncio.gather(stage.thread.finish(one), stage.thread.finish(other))
    assert stage.cuda.copied == [999, 11, 21, 12, 22, 13, 23]
    assert stage.done == stage.cuda.copied


async def test_what_a_request_waits_for_goes_first(stage: Stage) -> None:
    await hold_up(stage)
    prefetch, demand = stage.job(Priority.PREFETCH), stage.job()
    stage.add(prefetch, 11, 12)
    stage.add(demand, 21, 22)
    stage.cuda.gate.set()
    await asyncio.gather(stage.thread.finish(prefetch), stage.thread.finish(demand))
    assert stage.cuda.copied == [999, 21, 22, 11, 12]


async def test_a_job_that_is_stopped_ends_with_what_is_in_the_stream(stage: Stage) -> None:
    first = await hold_up(stage)
    stage.add(first, 11, 12)
    stage.thread.stop(first)
    assert stage.done == [11, 12], "chunks that will not be copied are free at once"
    settled = asyncio.create_task(stage.thread.settle(first))
    await asyncio.sleep(0)
    assert not settled.done()
    stage.cuda.gate.set()
    await settled
    assert stage.cuda.copied == [999]
    with pytest.raises(Cancelled):
        await stage.thread.finish(first)
    stage.add(first, 13)
    assert stage.done[-1] == 13, "what comes late is let go of"


async def test_no_more_than_so_many_are_in_the_stream() -> None:
    stage = Stage(in_flight=3)
    await stage.open()
    await hold_up(stage)
    job = stage.job()
    stage.add(job, *range(1, 20))
    stage.cuda.gate.set()
    await stage.thread.finish(job)
    assert stage.cuda.most_in_stream == 3
    assert len(stage.cuda.copied) == 20
    await stage.close()


async def test_the_speed_of_copies_is_told(stage: Stage) -> None:
    job = stage.job()
    stage.add(job, 100, 200)
    await stage.thread.finish(job)
    await assert_eventually(lambda: [size for size, _, _ in stage.seen] == [100, 200])
    assert all(began <= ended for _, began, ended in stage.seen)


async def test_a_context_that_cannot_be_made_is_told() -> None:
    stage = Stage(in_flight=1)
    stage.cuda.fails["cuDevicePrimaryCtxRetain"] = UNKNOWN
    with pytest.raises(CudaError, match="cuDevicePrimaryCtxRetain"):
        await stage.thread.open()
    await asyncio.to_thread(stage.thread.close)
