"""Caches whose share of a node's memory changes while requests run."""

import random
from collections.abc import Callable, Iterator
from itertools import count
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, PAGESIZE, mmap
from pathlib import Path
from typing import Any

import pytest
import torch

from sllm.node.worker.engine.cache_pages import CachePages
from sllm.node.worker.engine.cache_share import Books, CacheShare, CacheUse, forget
from sllm.node.worker.engine.interface import Capacity, EngineRequest
from tests.node.worker.engine.test_engines import request
from tests.node.worker.engine.test_paged_cache import ON_TRANSFORMERS, ON_VLLM
from tests.node.worker.engines import CAPACITY, TIMEOUT, Harness, load, make_engine, running
from tests.support import wait_until

KV_TOKENS, POOL_TOKENS, CONTEXT = 256, 2048, 128
SMALL = Capacity(KV_TOKENS, 32, more_kv_tokens=POOL_TOKENS - KV_TOKENS, least_kv_tokens=CONTEXT)
GENERATED = 60


@pytest.fixture(params=[ON_TRANSFORMERS, ON_VLLM])
def harness(request: pytest.FixtureRequest, models: Path) -> Iterator[Harness]:
    engine = make_engine(str(request.param), models / "tiny-llama", SMALL, torch.float32)
    with running(engine) as harness:
        yield harness


def many(first: int = 0) -> list[EngineRequest]:
    """Requests of 90 tokens, twelve of which need more than `SMALL` begins with."""
    prompts = (tuple(1 + (n * 7 + which) % 200 for n in range(30)) for which in count(first))
    return [request(next(prompts), max_tokens=GENERATED) for _ in range(12)]


def pages_of(harness: Harness) -> CachePages[Any]:
    pages = harness.engine.pages
    assert isinstance(pages, CachePages)
    return pages


def resize(harness: Harness, tokens: int) -> CacheUse:
    return pages_of(harness).resize(in_bytes(harness, tokens))


def in_bytes(harness: Harness, tokens: int) -> int:
    layout = pages_of(harness).layout
    return tokens // layout.tokens * layout.size_bytes


class Watch:
    """Reads an engine's steps."""

    def __init__(self, harness: Harness) -> None:
        self._harness = harness
        self.ids: dict[str, list[int]] = {}
        self.finished: set[str] = set()
        self.left_out: list[set[str]] = []
        """For each step, who had begun and had no part in it."""

    @property
    def under_way(self) -> set[str]:
        return self.ids.keys() - self.finished

    def read_until(self, done: Callable[[], bool]) -> None:
        while not done():
            self._read()

    def _read(self) -> None:
        step = self._harness.steps.get(timeout=TIMEOUT)
        if step.tokens:
            self.left_out.append(self.under_way - {token.request_id for token in step.tokens})
        for token in step.tokens:
            self.ids.setdefault(token.request_id, []).append(token.token_id)
            if token.finish:
                self.finished.add(token.request_id)


def test_a_share_grows_under_requests_that_wait_and_comes_back_as_they_end(
    harness: Harness, models: Path
) -> None:
    first, watch = many(), Watch(harness)
    assert resize(harness, KV_TOKENS).share_bytes == in_bytes(harness, KV_TOKENS)
    for one in first:
        harness.engine.submit(one)
    watch.read_until(lambda: bool(watch.ids))
    assert len(watch.under_way) < len(first), "some have no room"
    assert resize(harness, POOL_TOKENS).share_bytes == in_bytes(harness, POOL_TOKENS)
    watch.read_until(lambda: watch.under_way == {one.request_id for one in first})
    watch.left_out.clear()
    use = resize(harness, 0)
    assert in_bytes(harness, KV_TOKENS) < use.least_bytes == use.share_bytes
    assert use.share_bytes < in_bytes(harness, POOL_TOKENS), "what nobody needs went at once"
    later = many(first=100)
    for one in later:
        harness.engine.submit(one)
    watch.read_until(lambda: bool(watch.finished))
    assert not any(watch.left_out), "nobody was thrown out"
    watch.read_until(lambda: len(watch.finished) == len(first) + len(later))
    wait_until(lambda: resize(harness, 0).share_bytes == in_bytes(harness, CONTEXT))
    for one in (first[0], later[-1]):
        assert watch.ids[one.request_id] == generated(models, one)


def generated(models: Path, one: EngineRequest) -> list[int]:
    """What transformers generates alone."""
    prompt = torch.tensor([one.prompt])
    output = load(models / "tiny-llama", torch.float32).generate(
        prompt, max_new_tokens=GENERATED, do_sample=False, eos_token_id=-1
    )
    found: list[int] = output[0, len(one.prompt) :].tolist()
    return found


def test_a_cache_that_has_a_fixed_size_says_so(models: Path) -> None:
    with running(make_engine("transformers", models / "tiny-llama", CAPACITY)) as harness:
        assert not pages_of(harness).resizes


def test_withheld_rows_take_no_memory_and_others_keep_what_they_have() -> None:
    with mmap(-1, 8 * PAGESIZE, flags=MAP_PRIVATE | MAP_ANONYMOUS) as memory:
        rows = torch.frombuffer(memory, dtype=torch.uint8).view(16, PAGESIZE // 2)
        rows.fill_(7)
        forget(rows, [5, 3, 4, 9, 14, 15])
        zero = [row for row in range(16) if not rows[row].any()]
        del rows
    assert zero == [4, 5, 14, 15], "whole pages of memory alone"


class Drawer:
    """Books of rows, some of which requests have, and may come to need."""

    def __init__(self, rows: int) -> None:
        self.free = list(range(rows))
        self.used: list[int] = []
        self.promised = 0
        self.books = Books(
            self.allocate,
            lambda rows: self.free.extend(rows),
            lambda: len(self.free),
            lambda: self.promised,
            lambda: (),
        )

    def allocate(self, count: int) -> list[int]:
        taken, self.free = self.free[:count], self.free[count:]
        return taken

    def begin(self, count: int, more: int) -> None:
        self.used += self.allocate(count)
        self.promised = len(self.used) + more

    def end(self, count: int) -> None:
        self.free += self.used[:count]
        del self.used[:count]
        self.promised = len(self.used)


@pytest.mark.parametrize("seed", range(20))
def test_a_share_follows_its_target_as_far_as_requests_let_it(seed: int) -> None:
    rng, drawer = random.Random(seed), Drawer(64)
    share = CacheShare(drawer.books, 64, least=4)
    for _ in range(200):
        match rng.randrange(4):
            case 0:
                drawer.begin(rng.randrange(9), more=rng.randrange(9))
            case 1:
                drawer.end(rng.randrange(9))
            case 2:
                share.target = rng.randrange(80)
            case _:
                before = share.now
                share.settle()
                needed = max(4, len(drawer.used), drawer.promised)
                assert share.now == min(64, max(share.target, min(before, needed)))
                assert share.is_owed == (share.now > share.target and drawer.promised > 0)
        assert share.used == len(drawer.used)
        assert share.now + len(set(range(64)) - {*drawer.used, *drawer.free}) == 64
