"""Pages of caches that leave an engine and come back to another one."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from transformers.generation.continuous_batching.cache import PagedAttentionCache

from sllm.node.worker.engine.adapters import Adapter, LowRank
from sllm.node.worker.engine.interface import Capacity, Engine, EngineRequest
from sllm.node.worker.engine.pages import EnginePages, Prefix
from sllm.node.worker.engine.transformers_engine import TransformersEngine
from sllm.sampling import Sampling
from tests.node.worker.engine.test_engines import request
from tests.node.worker.engines import (
    CAPACITY,
    Harness,
    Weights,
    load,
    make_engine,
    needs_vllm,
    running,
)
from tests.support import wait_until

needs_pages = pytest.mark.skipif(
    not hasattr(PagedAttentionCache, "count_new_complete_blocks"),
    reason="pages leave the cache of transformers from 5.23 on",
)
FAMILIES = ("tiny-llama", "tiny-gpt2", "tiny-qwen2")
UNIT = 32
"""Tokens: whole pages of every engine."""
PROMPT = tuple(1 + n * 7 % 200 for n in range(6 * UNIT + 5))
LONG = tuple(1 + n * 11 % 200 for n in range(15 * UNIT + 3))


ON_TRANSFORMERS = pytest.param("transformers", marks=needs_pages)
NIGHTLY_ON_VLLM = (needs_vllm, pytest.mark.nightly)
ON_VLLM = pytest.param("vllm", marks=needs_vllm)


@pytest.fixture(params=[ON_TRANSFORMERS, ON_VLLM])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@contextmanager
def engine(
    kind: str, directory: Path, capacity: Capacity = CAPACITY
) -> Iterator[tuple[Harness, EnginePages, list[Prefix]]]:
    """One that runs, its pages, and what its requests have left."""
    with running(make_engine(kind, directory, capacity, torch.float32)) as harness:
        pages = harness.engine.pages
        assert pages is not None
        left: list[Prefix] = []
        pages.subscribe(left.append)
        yield harness, pages, left


def take_out(pages: EnginePages, prefix: Prefix) -> list[memoryview]:
    """Copies of all its whole pages."""
    count = whole(prefix, pages)
    memory = [memoryview(bytearray(pages.layout.size_bytes)) for _ in range(count)]
    assert all(pages.copy(prefix, range(count), memory))
    return memory


def whole(prefix: Prefix, pages: EnginePages) -> int:
    """Whole pages of a prefix."""
    return len(prefix.tokens) // pages.layout.tokens


def tokens_of(harness: Harness, one: EngineRequest) -> tuple[list[int], int]:
    """What is generated, and how much of the prompt was found."""
    results = harness.generate([one])
    return results.ids(one.request_id), results.tokens[one.request_id][0].cached_prompt_tokens


@pytest.mark.parametrize(
    ("kind", "family"),
    [
        *(pytest.param("transformers", family, marks=needs_pages) for family in FAMILIES),
        pytest.param("vllm", FAMILIES[0], marks=needs_vllm),
        *(
            pytest.param("vllm", one, marks=(needs_vllm, pytest.mark.nightly))
            for one in FAMILIES[1:]
        ),
    ],
    indirect=["kind"],
)
@pytest.mark.parametrize(
    "sampling", [Sampling(temperature=0, seed=0), Sampling(temperature=1.0, seed=11)]
)
def test_tokens_are_the_same_with_pages_of_another_engine(
    kind: str, models: Path, family: str, sampling: Sampling
) -> None:
    with engine(kind, models / family) as (harness, pages, left):
        expected, found = tokens_of(harness, request(PROMPT, sampling=sampling, max_tokens=40))
        assert not found
        wait_until(lambda: left)
        layout, (prefix,) = pages.layout, left
        kept = take_out(pages, prefix)
    assert prefix.tokens == (*PROMPT, *expected[:-1]), "the last token has no keys yet"
    with engine(kind, models / family) as (harness, pages, _):
        assert pages.layout == layout
        again = request(PROMPT, sampling=sampling, max_tokens=40)
        assert pages.put(prefix, 0, kept, again.request_id) == len(kept)
        assert pages.present(prefix) == len(kept)
        assert tokens_of(harness, again) == (expected, 6 * UNIT)
        # The conversation goes on: the answer was kept as well.
        more = request((*PROMPT, *expected, 9, 9), max_tokens=4)
        assert tokens_of(harness, more)[1] == len(kept) * layout.tokens


def test_a_prompt_alone_leaves_its_pages(kind: str, models: Path) -> None:
    with engine(kind, models / "tiny-llama") as (harness, pages, left):
        tokens_of(harness, request(PROMPT, max_tokens=1))
        wait_until(lambda: left)
        assert left[0].tokens == PROMPT
        assert pages.present(left[0]) == whole(left[0], pages)


def test_what_was_cancelled_leaves_its_pages(kind: str, models: Path) -> None:
    with engine(kind, models / "tiny-llama") as (harness, pages, left):
        one = request(PROMPT, max_tokens=1000)
        harness.engine.submit(one)
        assert harness.steps.get(timeout=10).tokens
        harness.engine.cancel(one.request_id)
        wait_until(lambda: left)
        assert left[0].tokens[: len(PROMPT)] == PROMPT
        assert pages.present(left[0]) == whole(left[0], pages)


def test_whole_pages_of_what_is_running_leave_while_it_goes_on(kind: str, models: Path) -> None:
    with engine(kind, models / "tiny-llama") as (harness, pages, left):
        one, drawn = request(PROMPT, max_tokens=1000), list[int]()
        harness.engine.submit(one)
        while len(drawn) <= 2 * UNIT:
            drawn += [token.token_id for token in harness.steps.get(timeout=10).tokens]
        prefix = Prefix((*PROMPT, *drawn[:-1]))  # the last token has no keys yet
        running = take_out(pages, prefix)
        assert len(running) >= 8 * UNIT // pages.layout.tokens
        assert not left
        harness.engine.cancel(one.request_id)
        wait_until(lambda: left)
        assert take_out(pages, prefix) == running


def test_pages_are_those_of_their_adapter(kind: str, models: Path) -> None:
    ones = LowRank(torch.ones(1, 128), torch.ones(128, 1), 0.1)
    some, other = (Adapter(name, {"model.layers.0.self_attn.o_proj": ones}) for name in "ab")
    capacity = Capacity(kv_tokens=2048, max_requests=8, takes_adapters=True)
    with engine(kind, models / "tiny-llama", capacity) as (harness, pages, left):
        tokens_of(harness, request(PROMPT, adapter=some, max_tokens=2))
        wait_until(lambda: left)
        assert left[0].adapter is some
        assert pages.present(left[0]) == whole(left[0], pages)
        assert pages.present(Prefix(PROMPT, other)) == pages.present(Prefix(PROMPT)) == 0


def test_what_has_no_numbers_leaves_nothing(kind: str, models: Path) -> None:
    with running(engine_without_numbers(kind, models / "tiny-llama")) as harness:
        left: list[Prefix] = []
        assert harness.engine.pages
        harness.engine.pages.subscribe(left.append)
        bad = [request(PROMPT, max_tokens=1), request(PROMPT, max_tokens=9)]
        assert harness.generate(bad).broken == {one.request_id for one in bad}
        wait_until(lambda: not harness.engine.counters.running_requests)
        assert not left


def engine_without_numbers(kind: str, directory: Path) -> Engine:
    """One whose embeddings are none."""
    if kind == "vllm":
        return make_engine(kind, directory, dtype=torch.float32, change=spoil)
    model = load(directory, torch.float32)
    model.get_input_embeddings().register_forward_hook(lambda *args: args[2] * float("nan"))
    return TransformersEngine(model, CAPACITY)


def spoil(weights: Weights) -> None:
    weights["model.embed_tokens.weight"] *= float("nan")


def test_pages_that_do_not_fit_are_left_out_and_nobody_waits_for_ever(
    kind: str, models: Path
) -> None:
    with engine(kind, models / "tiny-llama") as (harness, pages, left):
        expected, _ = tokens_of(harness, request(LONG, max_tokens=3))
        wait_until(lambda: left)
        kept = take_out(pages, left[0])
    small = Capacity(kv_tokens=len(LONG) + UNIT, max_requests=4)
    with engine(kind, models / "tiny-llama", small) as (harness, pages, _):
        # Held for a request that never comes: it gives way to one that has come.
        assert pages.put(left[0], 0, kept, "never") == len(kept)
        assert pages.put(Prefix(LONG[1:]), 0, kept, "never either") < len(kept)
        other = tuple(reversed(LONG))
        assert tokens_of(harness, request(other, max_tokens=3))[1] == 0
        again = request(LONG, max_tokens=3)
        pages.put(left[0], 0, kept, again.request_id)
        assert tokens_of(harness, again)[0] == expected
        pages.let_go("never")


def test_pages_come_and_go_while_others_are_generated(kind: str, models: Path) -> None:
    """Whatever is put in and taken out meanwhile, tokens are what they are."""
    prompts = [tuple(1 + (n * step) % 200 for n in range(5 * UNIT)) for step in range(3, 9)]
    with engine(kind, models / "tiny-llama") as (harness, _, _):
        expected = [tokens_of(harness, request(one, max_tokens=12))[0] for one in prompts]
    tight = Capacity(kv_tokens=28 * UNIT, max_requests=4)
    with engine(kind, models / "tiny-llama", tight) as (harness, pages, left):
        ended = threading.Event()

        def shuffle() -> None:
            count, turn = whole(Prefix(prompts[0]), pages), 0
            memory = [memoryview(bytearray(pages.layout.size_bytes)) for _ in range(count)]
            while not ended.is_set():
                turn += 1
                for prompt in prompts:
                    prefix = Prefix(prompt)
                    if all(pages.copy(prefix, range(count), memory)):
                        pages.put(prefix, 0, memory, f"holder {turn}")
                pages.let_go(f"holder {turn - 1}")
                time.sleep(0.001)  # the engine has a turn as well

        thread = threading.Thread(target=shuffle)
        thread.start()
        try:
            for _ in range(2):
                asked = [request(one, max_tokens=12) for one in prompts]
                results = harness.generate(asked)
                assert [results.ids(one.request_id) for one in asked] == expected
        finally:
            ended.set()
            thread.join()
        assert left
        assert harness.failures.empty()


def test_computing_takes_what_it_takes(kind: str, models: Path) -> None:
    with engine(kind, models / "tiny-llama") as (harness, pages, _):
        assert pages.seconds_per_token is None
        tokens_of(harness, request(LONG, max_tokens=1))
        assert pages.seconds_per_token
        assert 0 < pages.seconds_per_token < 1
