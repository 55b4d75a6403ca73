"""Where the cache is short, what nobody waits for gives its part up, and goes on later."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sllm.node.worker.engine.interface import Capacity, EngineRequest
from sllm.node.worker.engine.yielding import YieldingEngine
from sllm.sampling import Sampling
from tests.node.worker.engine.test_engines import request
from tests.node.worker.engines import ENGINES, TIMEOUT, Harness, Results, make_engine, running
from tests.support import wait_until

SHORT = Capacity(kv_tokens=512, max_requests=8)
SOON = 25
"""Steps within which somebody who waits is served; those in the way have 200 to go."""


class Watched:
    """An engine's steps, counted."""

    def __init__(self, harness: Harness) -> None:
        self._harness = harness
        self.results = Results()

    def submit(self, *requests: EngineRequest) -> None:
        for one in requests:
            self._harness.engine.submit(one)

    def step(self) -> set[str]:
        """Who got a token in the next step."""
        step = self._harness.steps.get(timeout=TIMEOUT)
        self.results.take(step)
        return {token.request_id for token in step.tokens}

    def until(self, one: EngineRequest, tokens: int = 1) -> int:
        """Steps until a request has as many tokens."""
        steps = 0
        while len(self.results.tokens.get(one.request_id, ())) < tokens:
            steps += bool(self.step())
        return steps

    def to_end(self, *requests: EngineRequest) -> None:
        while not self.results.finished.issuperset(one.request_id for one in requests):
            self.step()


@pytest.fixture(params=ENGINES)
def watched(models: Path, request: pytest.FixtureRequest) -> Iterator[Watched]:
    inner = make_engine(request.param, models / "tiny-llama", SHORT, dtype=torch.float32)
    with running(YieldingEngine(inner)) as harness:
        yield Watched(harness)
        wait_until(lambda: not harness.engine.counters.running_requests)
        assert not harness.engine.counters.waiting_requests


def behind(token: int, prompt: int, tokens: int, seed: int = 1) -> EngineRequest:
    sampling = Sampling(temperature=1.0, seed=seed, frequency_penalty=0.5)
    return request((token,) * prompt, max_tokens=tokens, sampling=sampling, background=True)


def test_its_part_goes_to_whoever_waits_beside_others(watched: Watched) -> None:
    back, first = behind(7, 200, 250), request((9,) * 5, max_tokens=200)
    watched.submit(back)
    watched.until(back, 3)
    watched.submit(first)
    watched.until(first)
    second = request((8,) * 300, max_tokens=4)
    watched.submit(second)
    assert watched.until(second) < SOON
    watched.to_end(back, first, second)


def test_who_is_served_is_not_held_up_for_it(watched: Watched) -> None:
    back, first = behind(7, 250, 200), request((9,) * 100, max_tokens=250)
    watched.submit(back)
    watched.until(back, 3)
    watched.submit(first)
    watched.until(first)
    second = request((8,) * 300, max_tokens=2)
    watched.submit(second)
    pause = longest = 0
    while first.request_id not in watched.results.finished:
        pause = 0 if first.request_id in watched.step() else pause + 1
        longest = max(longest, pause)
    assert longest < SOON
    watched.to_end(back, first, second)


def test_those_that_are_in_each_others_way_are_in_nobody_elses(watched: Watched) -> None:
    two = behind(7, 200, 250), behind(6, 200, 250)
    watched.submit(*two)
    for one in two:
        watched.until(one, 30)
    while len(watched.step()) != 1:  # until one of them has had to give its part to the other
        pass
    urgent = request((8,) * 40, max_tokens=3)
    watched.submit(urgent)
    assert watched.until(urgent) < SOON
    watched.to_end(*two, urgent)


def test_it_gives_what_it_would_have_given(models: Path, watched: Watched) -> None:
    back = [behind(7 + n, 60 + n, 80, seed=n) for n in range(4)]
    alone = []
    for one in back:
        same = replace(one, request_id=f"alone-{one.request_id}", background=False)
        watched.submit(same)
        watched.to_end(same)
        alone.append(watched.results.ids(same.request_id))
    watched.submit(*back)
    for one in back:
        watched.until(one, 5)
    for n in range(3):
        urgent = request((90 + n,) * 400, max_tokens=6)
        watched.submit(urgent)
        watched.to_end(urgent)
    watched.to_end(*back)
    assert [watched.results.ids(one.request_id) for one in back] == alone


@pytest.mark.parametrize("way", ["cancel", "finish"])
def test_what_rests_can_be_ended_and_what_it_rests_for(watched: Watched, way: str) -> None:
    back = [behind(7, 200, 250), behind(6, 200, 250)]
    watched.submit(*back)
    watched.until(back[0], 3)
    urgent = request((8,) * 450, max_tokens=40)
    watched.submit(urgent)
    assert watched.until(urgent) < SOON
    end = getattr(watched._harness.engine, way)
    end(back[0].request_id)
    end(urgent.request_id)
    watched.to_end(back[1])
    assert back[0].request_id not in watched.results.finished
