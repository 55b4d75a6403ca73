"""Workers without weights: how many there are, for how long, and what comes of those that fail."""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import cast

import pytest

from sllm import errors
from sllm.clock import ManualClock
from sllm.node.instances.spec import EngineSpec
from sllm.node.instances.text_workers import (
    IDLE_SECONDS,
    MAX_QUESTIONS,
    MAX_WORKERS,
    SHORT_BYTES,
    WORKER_BYTES,
    TextSource,
    TextWorkers,
)
from sllm.node.instances.worker_client import Worker
from tests.node.stores import Bench
from tests.support import assert_eventually


class Pretender:
    """In the place of a worker."""

    def __init__(self, failure: errors.SllmError | None, may_serve: asyncio.Event) -> None:
        self._failure = failure
        self._may_serve = may_serve
        self.gone: asyncio.Future[errors.WorkerDied] = asyncio.get_running_loop().create_future()
        self.stopped = False

    async def wait_until_serving(self) -> None:
        await self._may_serve.wait()

    async def prepare(self, directory: Path, engine: EngineSpec) -> None:
        assert (directory / "config.json").exists()
        if self._failure:
            raise self._failure

    async def stop(self) -> None:
        self.stopped = True


class Texts:
    """Text workers, and all that were launched for them."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self.clock = ManualClock()
        self.launched: list[Pretender] = []
        self.failure: errors.SllmError | None = None
        self.may_serve = asyncio.Event()
        self.may_serve.set()
        self.serving: Worker | None = None
        """That of an instance."""
        self.workers = TextWorkers(bench.store, self._launch, self._serving, self.clock)

    async def _launch(self, engine: str, name: str) -> Worker:
        self.launched.append(Pretender(self.failure, self.may_serve))
        return cast(Worker, self.launched[-1])

    def _serving(self, source: TextSource) -> Worker | None:
        return self.serving

    def source(self, seed: int) -> TextSource:
        engine = EngineSpec("transformers", None, None, None)
        return TextSource(self._bench.model(seed), engine, "")

    async def use(self, seed: int, size_bytes: int = 0) -> Worker:
        async with self.workers.of(self.source(seed), size_bytes) as worker:
            return worker

    async def idle(self, seconds: float) -> None:
        await asyncio.sleep(0)  # who waits has begun to
        self.clock.advance(seconds)

    @property
    def running(self) -> int:
        return sum(not one.stopped for one in self.launched)


@pytest.fixture
def texts(bench: Bench) -> Texts:
    return Texts(bench)


async def test_one_serves_all_who_ask_until_nobody_has_for_a_while(texts: Texts) -> None:
    first, second = await asyncio.gather(texts.use(0), texts.use(0))
    assert first is second
    await texts.idle(0.9 * IDLE_SECONDS)
    assert await texts.use(0) is first
    await texts.idle(0.9 * IDLE_SECONDS)
    assert await texts.use(0) is first
    await texts.idle(1.1 * IDLE_SECONDS)
    await assert_eventually(lambda: not texts.running)
    assert await texts.use(0) is not first
    await texts.workers.close()
    assert not texts.running


async def test_an_instance_answers_what_is_short(texts: Texts) -> None:
    texts.serving = cast(Worker, Pretender(None, texts.may_serve))
    assert await texts.use(0, SHORT_BYTES) is texts.serving
    assert not texts.launched
    assert await texts.use(0, SHORT_BYTES + 1) is not texts.serving
    await texts.workers.close()


async def test_the_one_that_was_used_longest_ago_leaves_for_another(texts: Texts) -> None:
    kept = [await texts.use(seed) for seed in range(MAX_WORKERS)]
    await texts.use(0)
    await texts.use(MAX_WORKERS)
    await assert_eventually(lambda: texts.running == MAX_WORKERS)
    assert await texts.use(0) is kept[0]
    assert texts.launched[1].stopped
    await texts.workers.close()


async def test_none_that_is_at_work_leaves(texts: Texts) -> None:
    async with AsyncExitStack() as work:
        for seed in range(MAX_WORKERS):
            await work.enter_async_context(texts.workers.of(texts.source(seed), 0))
        with pytest.raises(errors.NoCapacity, match=f"texts of {MAX_WORKERS} models"):
            await texts.use(MAX_WORKERS)
        texts.workers.give_way(0)
        await asyncio.sleep(0)
        assert texts.running == MAX_WORKERS
    await texts.workers.close()


async def test_idle_ones_leave_their_memory_to_instances(texts: Texts) -> None:
    await texts.use(0)
    texts.workers.give_way(WORKER_BYTES)
    await asyncio.sleep(0)
    assert texts.running == 1
    texts.workers.give_way(WORKER_BYTES - 1)
    await assert_eventually(lambda: not texts.running)
    await texts.workers.close()


@pytest.mark.parametrize("failure", [errors.WorkerDied("died"), errors.DeadlineExceeded("slow")])
async def test_one_that_fails_while_it_is_asked_is_replaced(
    texts: Texts, failure: errors.SllmError
) -> None:
    with pytest.raises(type(failure)):
        async with texts.workers.of(texts.source(0), 0):
            raise failure
    await assert_eventually(lambda: not texts.running)
    await texts.use(0)
    assert texts.running == 1
    await texts.workers.close()


async def test_a_slow_question_ends_no_worker_that_others_ask(texts: Texts) -> None:
    async with texts.workers.of(texts.source(0), 0):
        with pytest.raises(errors.DeadlineExceeded):
            async with texts.workers.of(texts.source(0), 0):
                raise errors.DeadlineExceeded("slow")
        assert texts.running == 1
    assert len(texts.launched) == 1
    await texts.workers.close()


async def test_one_answers_so_many_questions_at_once_and_no_more(texts: Texts) -> None:
    async with AsyncExitStack() as questions:
        for _ in range(MAX_QUESTIONS):
            await questions.enter_async_context(texts.workers.of(texts.source(0), 0))
        with pytest.raises(errors.NoCapacity, match=f"{MAX_QUESTIONS} questions"):
            await texts.use(0)
        await texts.use(1)
    await texts.use(0)
    await texts.workers.close()
    assert not texts.running


async def test_who_waits_for_a_start_is_told_of_the_end(texts: Texts) -> None:
    texts.may_serve.clear()
    asking = asyncio.create_task(texts.use(0))
    await assert_eventually(lambda: texts.launched)
    await texts.workers.close()
    with pytest.raises(errors.ShuttingDown):
        await asking
    assert not texts.running


async def test_a_bad_question_ends_no_worker(texts: Texts) -> None:
    with pytest.raises(errors.InvalidPrompt):
        async with texts.workers.of(texts.source(0), 0):
            raise errors.InvalidPrompt("no")
    await texts.use(0)
    assert len(texts.launched) == 1
    await texts.workers.close()


async def test_one_that_has_ended_by_itself_is_replaced(texts: Texts) -> None:
    await texts.use(0)
    texts.launched[0].gone.set_result(errors.WorkerDied("ended"))
    await texts.use(0)
    assert len(texts.launched) == 2
    await texts.workers.close()
    assert not texts.running


async def test_one_that_cannot_be_prepared_is_told_of_and_stopped(texts: Texts) -> None:
    texts.failure = errors.UnsupportedModel("no tokenizer")
    for _ in range(2):
        with pytest.raises(errors.UnsupportedModel):
            await texts.use(0)
    assert len(texts.launched) == 2
    await assert_eventually(lambda: not texts.running)
    texts.failure = None
    await texts.use(0)
    await texts.workers.close()


async def test_a_caller_that_leaves_ends_no_start(texts: Texts) -> None:
    asking = asyncio.create_task(texts.use(0))
    await asyncio.sleep(0)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await texts.use(0)
    assert len(texts.launched) == 1
    await texts.workers.close()
    with pytest.raises(errors.ShuttingDown):
        await texts.use(0)
    assert not texts.running
