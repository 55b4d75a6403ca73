"""Steps that are broken off for somebody who has come."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sllm.node.worker.engine.interface import Capacity, EngineRequest
from sllm.node.worker.engine.transformers_engine import TransformersEngine
from sllm.sampling import Sampling
from tests.node.worker.engine.test_engines import request
from tests.node.worker.engines import ENGINES, TIMEOUT, Harness, Results, make_engine, running

pytestmark = pytest.mark.parametrize("kind", ENGINES)
SAMPLED = Sampling(temperature=1.0, seed=7)


class Coming:
    """Has somebody come within a step: before the first layer of the model, once for each."""

    def __init__(self, harness: Harness, awaited: list[EngineRequest], every: int) -> None:
        self._harness = harness
        self._awaited = awaited
        self._every = every
        self._passes = 0
        layer = model_of(harness.engine).model.layers[0]
        # Before the engine's own look, which is at the same place.
        layer.register_forward_pre_hook(self._come, prepend=True)

    def _come(self, *_: Any) -> None:
        self._passes += 1
        if self._awaited and self._passes % self._every == 0:
            self._harness.engine.submit(self._awaited.pop(0))


def model_of(engine: Any) -> Any:
    """The module that an engine runs, which has been started."""
    if isinstance(engine, TransformersEngine):
        return engine._model
    return engine._core.model_executor.driver_worker.worker.model_runner.model


def left(engine: Any) -> int:
    """How many of an engine's steps were broken off."""
    if isinstance(engine, TransformersEngine):
        assert engine._batch is not None
        return engine._batch.lookout.count
    count: int = engine.interruptions.lookout.count
    return count


def behind(alone: list[EngineRequest]) -> list[EngineRequest]:
    """The same, that nobody waits for."""
    return [replace(one, request_id=f"b-{one.request_id}", background=True) for one in alone]


def finish(harness: Harness, requests: list[EngineRequest]) -> Results:
    results = Results()
    while not results.finished.issuperset(one.request_id for one in requests):
        results.take(harness.steps.get(timeout=TIMEOUT))
    return results


@pytest.mark.parametrize("every", [3, 7])
def test_a_step_that_was_broken_off_is_done_again_and_nothing_changes(
    models: Path, kind: str, every: int
) -> None:
    """Also where those who come begin as what the step has not computed, and would find it."""
    shared = tuple(range(40, 140))
    asked = [
        request((*shared[:80], *range(n, n + 3 + 20 * n)), sampling=SAMPLED, max_tokens=60)
        for n in range(6)
    ]
    urgent = [request((*shared[: 60 + n], n), max_tokens=1) for n in range(48 // every)]
    with running(make_engine(kind, models / "tiny-llama", dtype=torch.float32)) as harness:
        expected = harness.generate([*asked, *urgent])
    with running(make_engine(kind, models / "tiny-llama", dtype=torch.float32)) as harness:
        Coming(harness, list(urgent), every)
        waiting = behind(asked)
        for one in waiting:
            harness.engine.submit(one)
        results = finish(harness, [*waiting, *urgent])
        assert left(harness.engine) >= 3
        for one, other in zip(asked, waiting, strict=True):
            assert results.ids(other.request_id) == expected.ids(one.request_id)
        for one in urgent:
            assert results.ids(one.request_id) == expected.ids(one.request_id)
        again = harness.generate([replace(one, request_id=f"c{one.request_id}") for one in asked])
        for one in asked:
            assert again.ids(f"c{one.request_id}") == expected.ids(one.request_id)


def test_who_comes_within_a_step_of_the_background_has_the_first_token_after_it(
    models: Path, kind: str
) -> None:
    with running(make_engine(kind, models / "tiny-llama", dtype=torch.float32)) as harness:
        long, urgent = request((7,) * 50, max_tokens=100, background=True), request(max_tokens=1)
        Coming(harness, [urgent], 20)
        harness.engine.submit(long)
        before, results = 0, Results()
        while urgent.request_id not in results.finished:
            results.take(harness.steps.get(timeout=TIMEOUT))
            before = len(results.tokens[long.request_id])
        assert before == 19  # the twentieth was broken off


def test_pages_that_a_step_has_not_computed_are_found_by_nobody(models: Path, kind: str) -> None:
    capacity = Capacity(kv_tokens=512, max_requests=8)
    prompt = tuple(range(30, 130))
    alone, also = request(prompt, max_tokens=8), request((*prompt, 5), max_tokens=8)
    with running(make_engine(kind, models / "tiny-llama", capacity, torch.float32)) as harness:
        expected = harness.generate([alone, also])
    with running(make_engine(kind, models / "tiny-llama", capacity, torch.float32)) as harness:
        Coming(harness, [also], 1)  # within the prompt's first step
        gone = request(prompt, max_tokens=8, background=True)
        harness.engine.submit(gone)
        found = finish(harness, [also])
        assert found.ids(also.request_id) == expected.ids(also.request_id)
        assert found.tokens[also.request_id][0].cached_prompt_tokens == 0
        harness.engine.cancel(gone.request_id)
        assert harness.generate([alone]).ids(alone.request_id) == expected.ids(alone.request_id)
