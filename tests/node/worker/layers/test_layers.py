"""Layers that are computed elsewhere give the tokens of the whole model, whatever becomes of it."""

import asyncio
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from sllm.errors import InvalidArgument
from sllm.node.tiers.pool import Pool
from sllm.node.worker import layer_wire
from sllm.node.worker.backends.transformers_backend import LoadedModule
from sllm.node.worker.building import BuiltModel
from sllm.node.worker.engine.interface import Engine, EngineRequest
from sllm.node.worker.engine.paged_cache import PagedCache
from sllm.node.worker.layers import lent
from sllm.node.worker.layers.borrowed import BorrowedLayers
from sllm.node.worker.layers.lent import LentLayers
from sllm.node.worker.layers.passes import Answer, LayerCache, Pass
from sllm.node.worker.model.description import load_architecture
from sllm.node.worker.model.held_weights import PooledWeights, hold
from sllm.node.worker.model.module import build_module
from sllm.node.worker.weights_use import WeightsUse
from sllm.sampling import Sampling
from tests.node.worker.engines import CAPACITY, Harness
from tests.node.worker.staging import CHUNK_BYTES, Staged, stage

LAYERS = range(1, 3)
TOKENS = 24


@pytest.fixture(scope="module", params=["tiny-llama", "tiny-qwen2"])
def staged(
    request: pytest.FixtureRequest, models: Path, pool: Pool, tmp_path_factory: Any
) -> Iterator[Staged]:
    directory = tmp_path_factory.mktemp("layers") / request.param
    staged = stage(models / request.param, directory, pool)
    yield staged
    for chunks in staged.chunks:
        pool.free(chunks)


@pytest.fixture(scope="module")
def requests() -> list[EngineRequest]:
    """Prompts of several steps, and some that begin alike; drawn greedily and not."""
    torch.manual_seed(0)
    long = tuple(torch.randint(3, 1000, (300,)).tolist())
    prompts = [long, long[:40], (*long[:40], 7, 8), (5,), long[100:160]]
    return [
        EngineRequest(f"r{n}", prompt, Sampling(temperature=0.8 * (n % 2), seed=n), TOKENS)
        for n, prompt in enumerate(prompts)
    ]


@pytest.fixture(scope="module")
def expected(staged: Staged, pool: Pool, requests: list[EngineRequest]) -> list[list[int]]:
    with whole(staged, pool) as (_, engine), running(engine) as harness:
        return tokens(harness, requests)


def tokens(harness: Harness, requests: list[EngineRequest]) -> list[list[int]]:
    found = harness.generate(requests)
    return [found.ids(one.request_id) for one in requests]


@contextmanager
def running(engine: Engine) -> Iterator[Harness]:
    harness = Harness(engine)
    yield harness
    engine.stop()


@contextmanager
def whole(staged: Staged, pool: Pool) -> Iterator[tuple[Any, Engine]]:
    """A model with all of its weights, and its engine."""
    weights = PooledWeights(CHUNK_BYTES, staged.chunks, staged.manifest.tensors)
    held = hold(pool.fd, weights)
    module = build_module(load_architecture(staged.directory), dict(held.tensors))
    yield module, LoadedModule(module).engine(CAPACITY)


def theirs(staged: Staged) -> frozenset[int]:
    """Chunks in which there is nothing but layers that are borrowed."""
    inside, outside = set[int](), set[int]()
    for one in staged.manifest.tensors:
        is_inside = any(f".layers.{layer}." in one.name for layer in LAYERS)
        last = -(-(one.offset + one.size) // CHUNK_BYTES)
        (inside if is_inside else outside).update(range(one.offset // CHUNK_BYTES, last))
    return frozenset(inside - outside)


class Borrower:
    """A model that lacks layers, and runs all the same."""

    def __init__(self, staged: Staged, pool: Pool, stack: ExitStack) -> None:
        self.use = WeightsUse()
        self.staged = staged
        stack.callback(self.use.close)
        self._lacking = theirs(staged)
        weights = PooledWeights(
            CHUNK_BYTES, staged.chunks, staged.manifest.tensors, None, self._lacking, (LAYERS,)
        )
        held = hold(pool.fd, weights)
        module = build_module(load_architecture(staged.directory), dict(held.tensors))
        loaded = LoadedModule(module)
        self.use.watch(BuiltModel(held, loaded), weights, tell_first_use=False)
        self.layers = self.use.borrowed(LAYERS)
        self.harness = stack.enter_context(running(loaded.engine(CAPACITY)))

    def arrive(self) -> None:
        """Has the layers' own weights be there."""
        self.use.arrived(sorted(self._lacking))


class Lender:
    """Computes passes in a thread, sent and answered as between nodes."""

    def __init__(self, computes: LentLayers, layers: BorrowedLayers) -> None:
        self.passes = 0
        self.before_answer: Callable[[Answer], bool] = lambda _: True
        """Whether it is given."""
        self.ended = threading.Event()
        self._lent = computes
        self._layers = layers
        self._asked: queue.SimpleQueue[Pass | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        layers.ready(self._asked.put, self.ended.set)

    def _run(self) -> None:
        while (one := self._asked.get()) is not None:
            self.passes += 1
            sent = layer_wire.one_pass(layer_wire.pass_message(one), self._lent.dtype)
            self._give(self._lent.compute(sent, self._give))

    def _give(self, answer: Answer) -> None:
        if self.before_answer(answer):
            message = layer_wire.answer_message(answer)
            self._layers.take(layer_wire.answer(message, self._layers.dtype))

    def close(self) -> None:
        self._asked.put(None)
        self._thread.join()


@pytest.fixture
def pair(staged: Staged, pool: Pool) -> Iterator[tuple[Borrower, Lender]]:
    with ExitStack() as stack:
        module, engine = stack.enter_context(whole(staged, pool))
        stack.enter_context(running(engine))
        assert isinstance(engine.pages, PagedCache)
        borrower = Borrower(staged, pool, stack)
        lender = Lender(LentLayers(module, engine.pages.whole, LAYERS), borrower.layers)
        stack.callback(lender.close)
        yield borrower, lender


def test_tokens_are_those_of_the_whole_model(
    pair: tuple[Borrower, Lender], requests: list[EngineRequest], expected: list[list[int]]
) -> None:
    borrower, lender = pair
    assert tokens(borrower.harness, requests) == expected
    assert lender.passes > TOKENS
    borrower.arrive()
    before = lender.passes
    assert tokens(borrower.harness, requests) == expected
    assert lender.ended.wait(5.0)
    assert lender.passes == before


async def test_pages_from_elsewhere_wait_until_all_layers_are_computed_here(
    pair: tuple[Borrower, Lender],
) -> None:
    borrower, _ = pair
    waiting = asyncio.create_task(borrower.use.until_own())
    lacking = sorted(theirs(borrower.staged))
    borrower.use.arrived(lacking[:-1])
    await asyncio.sleep(0)
    assert not waiting.done()
    borrower.use.arrived(lacking[-1:])
    await asyncio.wait_for(waiting, 10)


def test_weights_that_come_meanwhile_are_used_from_then_on(
    pair: tuple[Borrower, Lender], requests: list[EngineRequest], expected: list[list[int]]
) -> None:
    """Over the keys and values that came back."""
    borrower, lender = pair

    def some_passes(_: Answer) -> bool:
        if lender.passes == TOKENS // 2:
            borrower.arrive()
        return True

    lender.before_answer = some_passes
    assert tokens(borrower.harness, requests) == expected
    assert lender.passes == TOKENS // 2


def test_a_pass_that_is_not_answered_is_computed_once_weights_are_there(
    pair: tuple[Borrower, Lender], requests: list[EngineRequest], expected: list[list[int]]
) -> None:
    borrower, lender = pair

    def never_the_end(answer: Answer) -> bool:
        if lender.passes == TOKENS // 2:
            borrower.arrive()
            return False
        return True

    lender.before_answer = never_the_end
    assert tokens(borrower.harness, requests) == expected


def test_a_lender_that_is_lost_amid_a_pass_is_done_without(
    pair: tuple[Borrower, Lender],
    requests: list[EngineRequest],
    expected: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lent, "ANSWER_BYTES", 1)  # a message for each layer
    borrower, lender = pair
    lost = threading.Event()

    def half_a_pass(answer: Answer) -> bool:
        if lender.passes == TOKENS // 2 and answer.hidden is not None:
            lost.set()
            borrower.layers.lost()
        return not lost.is_set()

    lender.before_answer = half_a_pass

    def arrive_later() -> None:
        lost.wait(60.0)
        borrower.arrive()

    arriving = threading.Thread(target=arrive_later)
    arriving.start()
    assert tokens(borrower.harness, requests) == expected
    arriving.join()


@pytest.mark.parametrize("wrong", ["hidden", "caches"])
def test_an_answer_that_does_not_fit_is_done_without(
    pair: tuple[Borrower, Lender],
    requests: list[EngineRequest],
    expected: list[list[int]],
    wrong: str,
) -> None:
    borrower, lender = pair

    def misfit(answer: Answer) -> bool:
        if lender.passes < TOKENS // 2:
            return True
        hidden, (first, *_) = torch.zeros(3), answer.caches
        other = LayerCache(first.layer, first.keys[:, :, :0], first.values[:, :, :0])
        caches = (other,) if wrong == "caches" else ()
        borrower.layers.take(Answer(answer.number, caches, hidden if not caches else answer.hidden))
        borrower.arrive()
        return False

    lender.before_answer = misfit
    assert tokens(borrower.harness, requests) == expected


def test_a_pass_that_the_cache_has_no_place_for_is_refused(staged: Staged, pool: Pool) -> None:
    with whole(staged, pool) as (module, engine), running(engine):
        assert isinstance(engine.pages, PagedCache)
        computes = LentLayers(module, engine.pages.whole, LAYERS)
        ends = torch.tensor([0, 1], dtype=torch.int32)
        position, none = torch.zeros(1, 1, dtype=torch.int32), torch.empty(0, dtype=torch.int64)
        for size, place in ((module.config.hidden_size, 1 << 40), (3, 0)):
            hidden = torch.zeros(1, 1, size, dtype=computes.dtype)
            one = Pass(1, hidden, position, ends, ends, torch.tensor([place]), none)
            with pytest.raises(InvalidArgument, match="does not fit"):
                computes.compute(one, lambda _: None)


def test_layers_that_a_model_does_not_have_are_not_lent(staged: Staged, pool: Pool) -> None:
    with whole(staged, pool) as (module, engine), running(engine):
        assert isinstance(engine.pages, PagedCache)
        for wrong in (range(0), range(2, 4)):
            with pytest.raises(InvalidArgument):
                LentLayers(module, engine.pages.whole, wrong)


def test_a_pass_that_does_not_fit_together_is_refused() -> None:
    one = Pass(
        1,
        torch.zeros(1, 3, 8),
        torch.zeros(1, 3, dtype=torch.int32),
        torch.tensor([0, 3], dtype=torch.int32),
        torch.tensor([0, 5], dtype=torch.int32),
        torch.zeros(3, dtype=torch.int64),
        torch.zeros(5, dtype=torch.int64),
    )
    message = layer_wire.pass_message(one)
    assert layer_wire.one_pass(message, torch.float32).read.shape == (5,)
    for broken in ({"positions": [0, 1]}, {"query_ends": [0, 2]}, {"write": b"1234567"}):
        other = type(message)()
        other.CopyFrom(message)
        for name, value in broken.items():
            other.ClearField(name)  # type: ignore[arg-type]
            if isinstance(value, bytes):
                setattr(other, name, value)
            else:
                getattr(other, name).extend(value)
        with pytest.raises(InvalidArgument):
            layer_wire.one_pass(other, torch.float32)
