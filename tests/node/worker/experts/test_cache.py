"""Bounded memory for experts: what a step needs is there, and never more than fits."""

import asyncio
import threading
from collections.abc import Iterator, Sequence
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sllm.errors import Cancelled, CheckpointUnreadable, WorkerDied
from sllm.node.worker.experts.cache import READ_THREADS, ExpertCache
from sllm.node.worker.experts.foresight import Guess
from sllm.node.worker.experts.keeping import ByUse
from tests.properties import examples
from tests.support import assert_eventually

LAYERS, EXPERTS = 3, 8
SIZES = [3 + number % 2 for number in range(LAYERS * EXPERTS)]
LAYER = sum(SIZES[:EXPERTS])


class Disk:
    """Notes what is brought and dropped, and fails where it is told to."""

    def __init__(self) -> None:
        self.there: set[int] = set()
        self.most = 0
        self.failing = threading.Event()
        self.open = threading.Event()
        self.open.set()
        self.asked: list[int] = []
        self.slow: set[int] | None = None
        """What waits until it is open. None: all."""
        self._lock = threading.Lock()

    def bring(self, number: int, gone: Sequence[int]) -> None:
        self.asked.append(number)
        if self.slow is None or number in self.slow:
            self.open.wait()
        if self.failing.is_set():
            raise CheckpointUnreadable("the disk is broken")
        with self._lock:
            self.there -= set(gone)
            assert number not in self.there, "it is there already"
            self.there.add(number)
            self.most = max(self.most, sum(SIZES[one] for one in self.there))


def made(disk: Disk, budget: int, patience: float = 30.0) -> tuple[ExpertCache, ByUse]:
    keeping = ByUse([EXPERTS] * LAYERS)
    return ExpertCache(SIZES, budget, keeping, disk.bring, patience), keeping


@pytest.fixture
def disk() -> Iterator[Disk]:
    disk = Disk()
    yield disk
    disk.open.set()


@examples(30)
@given(budget=st.integers(LAYER, LAYER * LAYERS + 5), seed=st.integers(0, 1000))
def test_what_is_needed_is_there_and_never_more_than_fits(budget: int, seed: int) -> None:
    disk, chance = Disk(), Random(seed)
    cache, keeping = made(disk, budget)
    for step in range(30):
        for layer in range(LAYERS):
            tokens = chance.choice([1, 1, 1, 20])
            chosen = np.array(
                [chance.sample(range(EXPERTS), 2) for _ in range(tokens)], dtype=np.intp
            )
            keeping.used(layer, chosen)
            needed = set((np.unique(chosen) + layer * EXPERTS).tolist())
            cache.need(needed)
            assert needed <= disk.there, f"step {step}"
            ahead = chance.sample(range(LAYERS * EXPERTS), 3)
            cache.read_ahead(Guess(np.array(ahead), np.array([0.99, 0.9, 0.6])))
            assert needed <= disk.there, "what is computed with has gone"
    cache.close()
    assert disk.most <= budget
    counts = cache.counts
    assert counts.waited_for <= counts.used
    assert counts.held_bytes <= budget


def test_what_is_likely_is_read_before_it_is_asked_for(disk: Disk) -> None:
    cache, _ = made(disk, LAYER * LAYERS)
    cache.read_ahead(Guess(np.array([4, 5, 6]), np.array([0.9, 0.8, 0.01])))
    cache.need([4, 5])
    assert disk.there == {4, 5}, "what is hardly likely is not read"
    assert cache.counts.read_ahead <= 2
    cache.close()


def test_what_is_worth_clearly_less_goes_for_a_guess(disk: Disk) -> None:
    cache, keeping = made(disk, LAYER)
    keeping.used(0, np.array([[one for one in range(EXPERTS) if one != 5]] * 64))
    cache.need(range(EXPERTS))
    cache.need([0])
    cache.read_ahead(Guess(np.array([EXPERTS]), np.array([0.9])))
    cache.need([EXPERTS])
    cache.close()
    assert disk.there == {*range(EXPERTS + 1)} - {5}


def test_nothing_goes_for_a_guess_that_is_no_likelier(disk: Disk) -> None:
    cache, keeping = made(disk, LAYER)
    keeping.used(0, np.array([list(range(EXPERTS))] * 64))
    cache.need(range(EXPERTS))
    cache.need([])
    cache.read_ahead(Guess(np.array([EXPERTS]), np.array([0.9])))
    cache.close()
    assert disk.there == set(range(EXPERTS))


def test_what_was_to_go_for_a_guess_stays_if_that_is_put_off(disk: Disk) -> None:
    cache, _ = made(disk, LAYER)
    cache.need(range(EXPERTS))
    cache.need([0])
    disk.open.clear()
    cache.read_ahead(Guess(np.arange(EXPERTS, 2 * EXPERTS), np.full(EXPERTS, 0.9)))
    threading.Timer(0.05, disk.open.set).start()
    cache.need(range(EXPERTS))
    assert disk.there >= set(range(EXPERTS))
    cache.close()
    assert disk.most <= LAYER


async def test_what_goes_has_its_memory_until_it_is_gone(disk: Disk) -> None:
    """Also what of it is more than whoever comes in its place takes."""
    large, small, other = 1, 0, 2
    budget = SIZES[small] + SIZES[other]
    cache, _ = made(disk, budget)
    cache.need([large])
    cache.need([])
    disk.slow = {small}
    disk.open.clear()
    cache.read_ahead(Guess(np.array([small]), np.array([0.9])))
    await assert_eventually(lambda: small in disk.asked)
    threading.Timer(0.05, disk.open.set).start()
    await asyncio.to_thread(cache.need, [other])
    assert disk.there == {small, other}
    assert disk.most == budget == cache.counts.held_bytes
    cache.close()


def test_a_disk_that_fails_fails_the_step_and_all_that_follow(disk: Disk) -> None:
    cache, _ = made(disk, LAYER)
    disk.failing.set()
    for _ in range(2):
        with pytest.raises(CheckpointUnreadable):
            cache.need([1, 2])
    cache.close()


def test_a_disk_that_gives_nothing_fails_the_step_in_time(disk: Disk) -> None:
    cache, _ = made(disk, LAYER, patience=0.05)
    disk.open.clear()
    with pytest.raises(WorkerDied, match="none of 2 experts"):
        cache.need([1, 2])
    disk.open.set()
    cache.close()


def test_a_step_that_waits_ends_with_the_model(disk: Disk) -> None:
    cache, _ = made(disk, LAYER)
    disk.open.clear()
    failures: list[BaseException] = []

    def wait() -> None:
        try:
            cache.need([1])
        except Cancelled as error:
            failures.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    closing = threading.Thread(target=cache.close)
    closing.start()
    waiting.join(30)
    assert failures
    disk.open.set()
    closing.join(30)
    assert not closing.is_alive()


def test_what_goes_for_a_guess_is_not_brought_back_before_it_has_gone() -> None:
    """Or whoever takes its memory would take that of what was just read."""
    under_way, overlapping, may_go = threading.Event(), list[int](), threading.Event()
    going = set[int]()

    def bring(number: int, gone: Sequence[int]) -> None:
        if number in going:
            overlapping.append(number)
        if number == EXPERTS:
            going.update(gone)
            under_way.set()
            may_go.wait()
            going.clear()

    cache = ExpertCache(SIZES, LAYER, ByUse([EXPERTS] * LAYERS), bring, 30.0)
    cache.need(range(EXPERTS))
    cache.need([])
    cache.read_ahead(Guess(np.array([EXPERTS]), np.array([0.9])))
    under_way.wait()
    threading.Timer(0.05, may_go.set).start()
    cache.need(sorted(going))
    cache.close()
    assert not overlapping


async def test_what_comes_while_another_waits_for_room_is_not_read_again() -> None:
    """Guesses have all the room; the needed one among them is there first, then room."""
    needed, *others = range(EXPERTS, EXPERTS + READ_THREADS)
    may_come = {number: threading.Event() for number in (needed, *others)}
    asked = list[int]()

    def bring(number: int, gone: Sequence[int]) -> None:
        asked.append(number)
        if number in may_come:
            may_come[number].wait()

    budget = sum(SIZES[number] for number in may_come)
    cache = ExpertCache(SIZES, budget, ByUse([EXPERTS] * LAYERS), bring, 30.0)
    cache.read_ahead(Guess(np.array(list(may_come)), np.full(READ_THREADS, 0.9)))
    await assert_eventually(lambda: len(asked) == READ_THREADS)
    step = asyncio.create_task(asyncio.to_thread(cache.need, [0, needed]))
    await assert_eventually(lambda: cache.counts.waited_for == 2)
    may_come[needed].set()
    await assert_eventually(lambda: cache.counts.read == 1)
    for number in others:
        may_come[number].set()
    await step
    cache.close()
    assert asked.count(needed) == 1
    assert cache.counts.held_bytes <= budget
