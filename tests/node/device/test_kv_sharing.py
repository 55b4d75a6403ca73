"""A node's instances share its memory for KV caches, seen from the agent."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack

import pytest

from sllm import errors
from sllm.clock import MonotonicClock
from sllm.node.device import kv_sharing
from sllm.node.device.kv_shares import CacheUse
from sllm.node.device.kv_sharing import KvShare, KvSharing
from tests.support import assert_eventually, tasks_beside_this

BUDGET, GRANTED, LEAST = 800, 200, 20


class CachedRequests:
    """A worker: each of its requests takes as much of the cache for as long as it runs."""

    def __init__(self, each: int = LEAST) -> None:
        self.asked = 0
        self.share = GRANTED
        self.lost = False
        self.resized = 0
        self._each = each

    @property
    def running(self) -> int:
        return self.asked

    @property
    def waiting(self) -> int:
        return self.asked - self.served

    @property
    def served(self) -> int:
        return min(self.asked, self.share // self._each)

    async def resize_cache(self, share_bytes: int) -> CacheUse:
        self.resized += 1
        if self.lost:
            raise errors.WorkerDied("it has ended")
        used = self.served * self._each
        self.share = max(share_bytes, min(self.share, max(used, LEAST)))
        return CacheUse(self.share, max(used, LEAST), self.served * self._each)


class FastClock(MonotonicClock):
    """Waits for a moment, whatever is asked for."""

    async def sleep(self, seconds: float) -> None:
        await super().sleep(min(seconds, 0.001))


async def some_looks(worker: CachedRequests) -> None:
    """Returns once the worker was asked a few times more."""
    before = worker.resized
    await assert_eventually(lambda: worker.resized >= before + 4)


@pytest.fixture
async def stack() -> AsyncIterator[ExitStack]:
    with ExitStack() as stack:
        yield stack
    await assert_eventually(lambda: not tasks_beside_this())


@pytest.fixture
def sharing() -> KvSharing:
    return KvSharing(BUDGET, FastClock())


async def started(sharing: KvSharing, stack: ExitStack) -> tuple[KvShare, CachedRequests]:
    share = stack.enter_context(sharing.share(GRANTED))
    await share.wait()
    worker = CachedRequests()
    share.follow(worker)
    return share, worker


async def test_a_share_grows_while_requests_wait_and_comes_back_with_them(
    sharing: KvSharing, stack: ExitStack
) -> None:
    share, worker = await started(sharing, stack)
    worker.asked = 30
    await assert_eventually(lambda: worker.served == 30)
    assert share.bytes == worker.share >= 600
    worker.asked = 0
    await assert_eventually(lambda: share.bytes == worker.share == GRANTED)


async def test_who_waits_has_its_own_before_others_have_more(
    sharing: KvSharing, stack: ExitStack
) -> None:
    mine, worker = await started(sharing, stack)
    other, others = await started(sharing, stack)
    worker.asked = 100
    await assert_eventually(lambda: mine.bytes >= 600 and others.share < GRANTED)
    others.asked = 10
    await some_looks(others)
    assert worker.share + others.share <= BUDGET
    assert others.served < 10, "nothing is taken from what runs"
    worker.asked = 20  # some have ended
    await assert_eventually(lambda: others.served == 10)
    assert mine.bytes + other.bytes <= BUDGET


async def test_a_start_waits_for_what_was_lent(sharing: KvSharing, stack: ExitStack) -> None:
    _, worker = await started(sharing, stack)
    worker.asked = 100
    await assert_eventually(lambda: worker.share == BUDGET - BUDGET // 8)
    starting = asyncio.create_task(started(sharing, stack))
    await some_looks(worker)
    assert not starting.done()
    worker.asked = 5
    share, _ = await asyncio.wait_for(starting, 10)
    assert share.bytes == GRANTED


async def test_a_start_that_waits_for_too_long_says_why(
    sharing: KvSharing, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kv_sharing, "START_SECONDS", 0.01)
    _, worker = await started(sharing, stack)
    worker.asked = 100
    await assert_eventually(lambda: worker.share > BUDGET - GRANTED)
    with pytest.raises(errors.NoCapacity, match="lent"):
        await started(sharing, stack)


async def test_what_a_lost_worker_had_is_free_once_it_has_gone(
    sharing: KvSharing, stack: ExitStack
) -> None:
    with ExitStack() as instance:
        _, worker = await started(sharing, instance)
        worker.asked = 100
        await assert_eventually(lambda: worker.share > BUDGET - GRANTED)
        worker.lost = True
        starting = asyncio.create_task(started(sharing, stack))
        await some_looks(worker)
        assert not starting.done(), "its memory may be in use"
    share, _ = await asyncio.wait_for(starting, 10)
    assert share.bytes == GRANTED
