from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from sllm.errors import NoCapacity
from sllm.node.worker.engine.interface import Capacity, EngineRequest, FinishReason
from sllm.sampling import Sampling
from tests.node.worker.conftest import FAMILIES
from tests.node.worker.engines import (
    ENGINES,
    TIMEOUT,
    Harness,
    Results,
    load,
    make_engine,
    running,
)
from tests.support import wait_until

GREEDY = Sampling(temperature=0, seed=0)
PROMPTS = [tuple(range(10 + 7 * n, 10 + 7 * n + 5 + 9 * n)) for n in range(8)]
_numbers = count()


def request(prompt: tuple[int, ...] = PROMPTS[1], **options: Any) -> EngineRequest:
    options = {"sampling": GREEDY, "max_tokens": 24, **options}
    return EngineRequest(f"r{next(_numbers)}", prompt, **options)


@pytest.fixture(scope="module", params=ENGINES)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def harness(models: Path, kind: str) -> Iterator[Harness]:
    with running(make_engine(kind, models / "tiny-llama")) as harness:
        yield harness


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_are_those_of_generate_alone_and_together(
    models: Path, kind: str, family: str
) -> None:
    reference = load(models / family, torch.float32)
    expected = []
    for prompt in PROMPTS:
        output = reference.generate(
            torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=-1
        )
        expected.append(output[0, len(prompt) :].tolist())
    with running(make_engine(kind, models / family, dtype=torch.float32)) as harness:
        alone = request(PROMPTS[3], max_tokens=12)
        assert harness.generate([alone]).ids(alone.request_id) == expected[3]
        together = [request(prompt, max_tokens=12) for prompt in PROMPTS]
        results = harness.generate(together)
        assert [results.ids(r.request_id) for r in together] == expected


def test_a_seed_gives_the_same_tokens_alone_and_in_a_batch(harness: Harness) -> None:
    def sampled() -> list[EngineRequest]:
        return [
            request(prompt, sampling=Sampling(temperature=1.5, top_p=0.95, seed=place))
            for place, prompt in enumerate(PROMPTS)
        ]

    together = sampled()
    results = harness.generate(together)
    batched = [results.ids(r.request_id) for r in together]
    alone = [harness.generate([r]).ids(r.request_id) for r in sampled()]
    assert batched == alone
    assert len(set(map(tuple, batched))) == len(PROMPTS)


def test_a_generation_goes_on_from_where_another_was_left(harness: Harness) -> None:
    """The draw depends on the position in the generation, and on nothing that is kept."""
    sampling = Sampling(temperature=1.5, seed=5)
    whole = request(sampling=sampling, max_tokens=10)
    again = request(sampling=sampling, max_tokens=4)
    expected = harness.generate([whole]).ids(whole.request_id)
    assert harness.generate([again]).ids(again.request_id) == expected[:4]


def test_different_seeds_give_different_tokens(harness: Harness) -> None:
    requests = [request(sampling=Sampling(seed=seed)) for seed in range(4)]
    results = harness.generate(requests)
    assert len({tuple(results.ids(r.request_id)) for r in requests}) == 4


def test_logprobs_are_those_of_the_model(harness: Harness, models: Path) -> None:
    asked = request(logprobs=3, max_tokens=4)
    sampled = request(logprobs=0, max_tokens=4, sampling=Sampling(seed=1))
    results = harness.generate([asked, sampled])
    reference = load(models / "tiny-llama")
    for r in (asked, sampled):
        tokens = results.tokens[r.request_id]
        sequence = torch.tensor([[*r.prompt, *results.ids(r.request_id)]])
        with torch.no_grad():
            logprobs = reference(sequence).logits[0, len(r.prompt) - 1 :].log_softmax(-1)
        for row, token in zip(logprobs, tokens, strict=False):
            assert token.logprob is not None
            assert token.logprob.logprob == pytest.approx(float(row[token.token_id]), abs=1e-3)
            assert len(token.logprob.top) == r.logprobs
    first = results.tokens[asked.request_id][0].logprob
    assert first is not None
    assert first.top[0].token_id == results.ids(asked.request_id)[0]


def test_no_logprobs_unless_asked_for(harness: Harness) -> None:
    plain, asked = request(max_tokens=2), request(max_tokens=2, logprobs=1)
    results = harness.generate([plain, asked])
    assert all(token.logprob is None for token in results.tokens[plain.request_id])


def test_a_stop_token_is_the_last(harness: Harness) -> None:
    free = request(sampling=Sampling(temperature=2, seed=3))
    tokens = harness.generate([free]).ids(free.request_id)
    stopped = request(sampling=free.sampling, stop_token_ids=frozenset({tokens[5]}), max_tokens=24)
    results = harness.generate([stopped])
    assert results.ids(stopped.request_id) == tokens[: tokens.index(tokens[5]) + 1]
    assert results.tokens[stopped.request_id][-1].finish is FinishReason.STOP


def test_the_end_by_length_says_so(harness: Harness) -> None:
    short = request(max_tokens=3)
    tokens = harness.generate([short]).tokens[short.request_id]
    assert [token.finish for token in tokens] == [None, None, FinishReason.LENGTH]


def test_the_prompt_of_an_earlier_request_is_found_in_the_cache(harness: Harness) -> None:
    prompt = tuple(range(100, 200))
    first, second = request(prompt), request(prompt)
    cold = harness.generate([first])
    warm = harness.generate([second])
    assert cold.tokens[first.request_id][0].cached_prompt_tokens == 0
    assert warm.tokens[second.request_id][0].cached_prompt_tokens >= 64
    assert warm.ids(second.request_id) == cold.ids(first.request_id)


def test_more_requests_than_fit_a_step_are_all_served(models: Path, kind: str) -> None:
    capacity = Capacity(kv_tokens=2048, max_requests=4)
    with running(make_engine(kind, models / "tiny-llama", capacity)) as harness:
        requests = [request(PROMPTS[n % 8], max_tokens=6) for n in range(70)]
        results = harness.generate(requests)
        assert all(len(results.tokens[r.request_id]) == 6 for r in requests)
        wait_until(lambda: harness.engine.counters.generated_tokens == 70 * 6)


def test_a_short_cache_delays_requests_and_changes_nothing(models: Path, kind: str) -> None:
    """Together they need several times the cache: some lose their place and begin again."""
    sampling = Sampling(temperature=1.2, seed=9)
    with running(make_engine(kind, models / "tiny-llama")) as harness:
        roomy = [request(p, max_tokens=100, sampling=sampling) for p in PROMPTS]
        results = harness.generate(roomy)
        expected = [results.ids(r.request_id) for r in roomy]
    capacity = Capacity(kv_tokens=224, max_requests=8)
    with running(make_engine(kind, models / "tiny-llama", capacity)) as harness:
        tight = [request(p, max_tokens=100, sampling=sampling) for p in PROMPTS]
        results = harness.generate(tight)
        assert [results.ids(r.request_id) for r in tight] == expected


def test_a_cancelled_request_stops_within_a_step(harness: Harness) -> None:
    before = harness.engine.counters
    long = request(max_tokens=1500)
    harness.engine.submit(long)
    while harness.engine.counters.generated_tokens < before.generated_tokens + 3:
        harness.steps.get(timeout=TIMEOUT)
    at_cancel = harness.engine.counters
    harness.engine.cancel(long.request_id)
    wait_until(lambda: harness.engine.counters.cancelled_requests > before.cancelled_requests)
    after = harness.engine.counters
    assert after.generated_tokens <= at_cancel.generated_tokens + 2  # this step's and one more
    assert after.running_requests == after.waiting_requests == 0
    short = request(max_tokens=5)
    harness.generate([short])
    final = harness.engine.counters
    assert final.generated_tokens == after.generated_tokens + 5
    assert final.steps == after.steps + 5
    assert final.cancelled_requests == before.cancelled_requests + 1


def test_a_cancelled_request_is_not_named_again(harness: Harness) -> None:
    long, other = request(max_tokens=1500), request(max_tokens=40)
    harness.engine.submit(long)
    harness.engine.submit(other)
    harness.steps.get(timeout=TIMEOUT)
    harness.engine.cancel(long.request_id)
    while not harness.steps.empty():
        harness.steps.get()
    named = set()
    while True:
        tokens = harness.steps.get(timeout=TIMEOUT).tokens
        named |= {token.request_id for token in tokens}
        if any(token.finish for token in tokens):
            break
    assert named == {other.request_id}


def test_cancelling_what_has_ended_or_never_was_does_nothing(harness: Harness) -> None:
    done = request(max_tokens=1)
    harness.generate([done])
    before = harness.engine.counters
    harness.engine.cancel(done.request_id)
    harness.engine.cancel("nobody")
    harness.generate([request(max_tokens=1)])
    assert harness.engine.counters.cancelled_requests == before.cancelled_requests


def test_a_request_that_finishes_early_does_not_count_as_cancelled(harness: Harness) -> None:
    before = harness.engine.counters
    long = request(max_tokens=1500)
    harness.engine.submit(long)
    harness.steps.get(timeout=TIMEOUT)
    harness.engine.finish(long.request_id)
    wait_until(lambda: harness.engine.counters.running_requests == 0)
    assert harness.engine.counters.cancelled_requests == before.cancelled_requests


def test_what_gives_way_is_computed_after_all_others(harness: Harness) -> None:
    ahead = [request((n,) * 450, max_tokens=1, gives_way=True) for n in range(50, 53)]
    for one in ahead:
        harness.engine.submit(one)
    harness.steps.get(timeout=TIMEOUT)  # the first of them is under way
    urgent = request((60,) * 300, max_tokens=1)
    results = harness.generate([urgent])
    assert ahead[-1].request_id not in results.tokens, "all were computed before"
    for one in ahead:
        harness.engine.cancel(one.request_id)
    wait_until(lambda: harness.engine.counters.running_requests == 0)


def test_what_gives_way_takes_a_small_part_of_the_steps_of_others(harness: Harness) -> None:
    running = request(max_tokens=1500)
    harness.engine.submit(running)
    wait_until(lambda: harness.steps.get(timeout=TIMEOUT).tokens)  # it generates
    before = harness.engine.counters.steps
    harness.generate([request((70,) * 480, max_tokens=1, gives_way=True)])
    assert harness.engine.counters.steps - before >= 480 // 32
    harness.engine.cancel(running.request_id)
    wait_until(lambda: harness.engine.counters.running_requests == 0)


def test_what_gives_way_takes_no_step_for_what_is_in_the_cache(harness: Harness) -> None:
    prompt = (71,) * 480
    harness.generate([request(prompt, max_tokens=1)])
    running = request(max_tokens=1500)
    harness.engine.submit(running)
    wait_until(lambda: harness.steps.get(timeout=TIMEOUT).tokens)  # it generates
    before = harness.engine.counters.steps
    harness.generate([request((*prompt, 72, 73), max_tokens=1, gives_way=True)])
    assert harness.engine.counters.steps - before < 480 // 32
    harness.engine.cancel(running.request_id)
    wait_until(lambda: harness.engine.counters.running_requests == 0)


def test_what_gives_way_ends_with_its_first_token_and_leaves_its_cache(
    models: Path, kind: str
) -> None:
    prompt = tuple(range(300, 364))
    with running(make_engine(kind, models / "tiny-llama")) as harness:
        ahead = request(prompt, max_tokens=1, gives_way=True)
        results = harness.generate([ahead])
        assert len(results.ids(ahead.request_id)) == 1
        after = request((*prompt, 7), max_tokens=1)
        (token,) = harness.generate([after]).tokens[after.request_id]
        assert token.cached_prompt_tokens == len(prompt)
        # It took part in no other step, and is not counted as cancelled.
        assert harness.engine.counters.steps == 2
        assert harness.engine.counters.cancelled_requests == 0


def test_what_nobody_waits_for_stands_still_up_to_the_first_token_of_others(
    models: Path, kind: str
) -> None:
    with running(make_engine(kind, models / "tiny-llama", dtype=torch.float32)) as harness:
        sampling = Sampling(temperature=1.0, seed=3)
        alone = [request(PROMPTS[n], sampling=sampling, max_tokens=120) for n in range(4)]
        expected = harness.generate(alone)
        behind = [replace(one, request_id=f"b-{one.request_id}", background=True) for one in alone]
        for one in behind:
            harness.engine.submit(one)
        results = Results()
        while len(results.tokens) < len(behind):
            results.take(harness.steps.get(timeout=TIMEOUT))
        urgent = [request((n,) * 450, max_tokens=3) for n in (60, 61)]
        for one in urgent:
            harness.engine.submit(one)
        first: set[str] = set()
        while not results.finished.issuperset(one.request_id for one in (*urgent, *behind)):
            step = harness.steps.get(timeout=TIMEOUT)
            begun = {one.request_id for one in urgent if one.request_id not in results.tokens}
            if begun & {token.request_id for token in step.tokens}:
                first |= {token.request_id for token in step.tokens}
            results.take(step)
        assert not first & {one.request_id for one in behind}
        for one, other in zip(alone, behind, strict=True):
            assert results.ids(other.request_id) == expected.ids(one.request_id)


def test_what_nobody_waits_for_goes_on_where_the_cache_has_no_room_for_others(
    models: Path, kind: str
) -> None:
    capacity = Capacity(kv_tokens=512, max_requests=8)
    with running(make_engine(kind, models / "tiny-llama", capacity)) as harness:
        behind = request((7,) * 200, max_tokens=200, background=True)
        harness.engine.submit(behind)
        wait_until(lambda: harness.steps.get(timeout=TIMEOUT).tokens)
        results = harness.generate([request((8,) * 400, max_tokens=4)])
        assert behind.request_id in results.finished


def test_requests_are_served_after_the_cache_was_short_and_all_were_cancelled(
    models: Path, kind: str
) -> None:
    capacity = Capacity(kv_tokens=128, max_requests=8)
    with running(make_engine(kind, models / "tiny-llama", capacity)) as harness:
        crowd = [request(prompt, max_tokens=90) for prompt in PROMPTS[:4]]
        for r in crowd:
            harness.engine.submit(r)
        while harness.engine.counters.waiting_requests == 0:
            harness.steps.get(timeout=TIMEOUT)
        for r in crowd:
            harness.engine.cancel(r.request_id)
        late = request(max_tokens=3)
        assert len(harness.generate([late]).ids(late.request_id)) == 3


def test_a_cache_beyond_all_memory_is_refused(models: Path, kind: str) -> None:
    capacity = Capacity(kv_tokens=10**9, max_requests=1)
    with pytest.raises(NoCapacity, match="KV cache"):
        Harness(make_engine(kind, models / "tiny-llama", capacity))
