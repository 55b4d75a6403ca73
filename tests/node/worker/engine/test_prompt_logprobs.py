"""Logprobs of prompts are those of the model over the whole prompt, on both engines."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from sllm.node.worker.engine import prompt_scores
from sllm.node.worker.engine.interface import Capacity, EngineRequest, PromptLogprobs
from sllm.node.worker.engine.prompt_scores import PromptScores
from sllm.sampling import Sampling
from tests.node.worker.conftest import FAMILIES
from tests.node.worker.engine.families import FAMILIES as PUBLISHED
from tests.node.worker.engine.families import Family, make_family
from tests.node.worker.engine.test_engines import PROMPTS, request
from tests.node.worker.engines import (
    ENGINES,
    Harness,
    Results,
    load,
    make_engine,
    needs_vllm,
    running,
)

LENGTHS = (1, 2, 16, 33, 300, 500)
"""One token, pages of both engines, and prompts that take several steps."""
SHARED = 64
SEEDED = Sampling(temperature=1.0, seed=3)


def made_prompts(vocabulary: int, seed: int = 0) -> list[tuple[int, ...]]:
    """All begin alike, as far as they go: what one computes is in the cache for the next."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(9, vocabulary, (max(LENGTHS),), generator=generator).tolist()
    own = torch.randint(9, vocabulary, (len(LENGTHS), max(LENGTHS)), generator=generator).tolist()
    return [
        (*tokens[:SHARED], *other[SHARED:])[:length]
        for other, length in zip(own, LENGTHS, strict=True)
    ]


def expected(model: Any, prompt: Sequence[int]) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(torch.tensor([prompt])).logits[0, :-1]
    return logits.float().log_softmax(-1)


def check(model: Any, prompt: Sequence[int], told: PromptLogprobs | None, count: int) -> None:
    assert told is not None
    rows = expected(model, prompt)
    assert told.logprobs.shape == (len(prompt) - 1,)
    own = rows.gather(-1, torch.tensor([prompt[1:]]).T).squeeze(-1)
    torch.testing.assert_close(told.logprobs, own, rtol=0, atol=1e-3)
    if len(prompt) == 1:
        return
    assert told.top_ids.shape == told.top_logprobs.shape == (len(prompt) - 1, count)
    torch.testing.assert_close(told.top_logprobs, rows.topk(count).values, rtol=0, atol=1e-3)
    theirs = rows.gather(-1, told.top_ids.long())
    torch.testing.assert_close(told.top_logprobs, theirs, rtol=0, atol=1e-3)


def first(results: Results, one: EngineRequest) -> PromptLogprobs | None:
    tokens = results.tokens[one.request_id]
    assert all(token.prompt is None for token in tokens[1:])
    return tokens[0].prompt


@pytest.fixture(scope="module", params=ENGINES)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def llama(models: Path, kind: str) -> Iterator[Harness]:
    with running(make_engine(kind, models / "tiny-llama", dtype=torch.float32)) as harness:
        yield harness


@pytest.mark.parametrize("family", FAMILIES)
def test_they_are_those_of_the_model_alone_and_together(
    models: Path, kind: str, family: str
) -> None:
    model = load(models / family, torch.float32)
    longest = model.config.max_position_embeddings - 4
    prompts = [one[:longest] for one in made_prompts(model.config.vocab_size)]
    with running(make_engine(kind, models / family, dtype=torch.float32)) as harness:
        for _ in range(2):  # the second time all of it is in the cache
            asked = [
                request(prompt, prompt_logprobs=place % 4, max_tokens=3, sampling=SEEDED)
                for place, prompt in enumerate(prompts)
            ]
            others = [request(prompt, max_tokens=3) for prompt in prompts]
            beside = [one for pair in zip(asked, others, strict=True) for one in pair]
            results = harness.generate(beside)
            for one in asked:
                check(model, one.prompt, first(results, one), one.prompt_logprobs or 0)
            assert not any(first(results, one) for one in others)


@pytest.mark.parametrize("engine", ["transformers", pytest.param("vllm", marks=needs_vllm)])
@pytest.mark.parametrize(
    "family",
    [one for one in PUBLISHED if one.name in ("Gemma 2", "Granite", "Qwen 2 MoE")],
    ids=lambda one: one.name,
)
def test_what_a_model_does_behind_its_last_layer_is_in_them(
    tmp_path: Path, engine: str, family: Family
) -> None:
    model = make_family(family, tmp_path)
    prompts = [one[:100] for one in made_prompts(model.config.vocab_size)]
    with running(make_engine(engine, tmp_path, dtype=torch.float32)) as harness:
        asked = [request(prompt, prompt_logprobs=2, max_tokens=2) for prompt in prompts]
        results = harness.generate(asked)
    for one in asked:
        check(model, one.prompt, first(results, one), 2)


@needs_vllm
def test_vllms_own_are_the_same(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are asked for where its runner does not show what it computes."""
    from sllm.node.worker.engine.vllm import prompts as reading

    monkeypatch.setattr(reading, "_METHOD", "not_there")
    model = load(models / "tiny-llama", torch.float32)
    engine: Any = make_engine("vllm", models / "tiny-llama", dtype=torch.float32)
    with running(engine) as harness:
        assert not engine._prompts.attached
        prompts = made_prompts(model.config.vocab_size)
        asked = [request(prompt, prompt_logprobs=2, max_tokens=3) for prompt in prompts]
        results = harness.generate(asked)
    for one in asked:
        check(model, one.prompt, first(results, one), 2)


@needs_vllm
def test_vllms_runner_shows_what_it_computes(models: Path) -> None:
    engine: Any = make_engine("vllm", models / "tiny-llama")
    with running(engine):
        assert engine._prompts.attached


def test_asking_changes_no_token(llama: Harness) -> None:
    prompts = made_prompts(512, seed=1)
    plain = [request(prompt, sampling=SEEDED, max_tokens=12) for prompt in prompts]
    asked = [
        request(prompt, sampling=SEEDED, max_tokens=12, prompt_logprobs=1) for prompt in prompts
    ]
    before, after = llama.generate(plain), llama.generate(asked)
    for one, other in zip(plain, asked, strict=True):
        assert before.ids(one.request_id) == after.ids(other.request_id)


def test_the_cache_leaves_no_position_out(llama: Harness) -> None:
    prompt = made_prompts(512, seed=2)[4]
    plain, asked = request(prompt, max_tokens=2), request(prompt, max_tokens=2, prompt_logprobs=0)
    llama.generate([plain])
    found = llama.generate([asked]).tokens[asked.request_id][0]
    assert found.cached_prompt_tokens == 0
    later = request(prompt, max_tokens=2)
    assert llama.generate([later]).tokens[later.request_id][0].cached_prompt_tokens > 0


def test_a_prompt_that_ends_at_once_is_told(llama: Harness) -> None:
    asked = request(made_prompts(512)[3], max_tokens=1, prompt_logprobs=2)
    assert first(llama.generate([asked]), asked) is not None


def test_those_that_lose_their_place_in_a_short_cache_are_told_all(models: Path, kind: str) -> None:
    model = load(models / "tiny-llama", torch.float32)
    capacity = Capacity(kv_tokens=224, max_requests=8)
    engine = make_engine(kind, models / "tiny-llama", capacity, dtype=torch.float32)
    with running(engine) as harness:
        asked = [request(prompt, max_tokens=100, prompt_logprobs=1) for prompt in PROMPTS]
        results = harness.generate(asked)
    for one in asked:
        check(model, one.prompt, first(results, one), 1)


def test_only_so_many_logits_of_prompts_are_there_at_once(
    models: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as go into the bytes that are set aside for them, whatever the vocabulary."""
    model, most = load(models / "tiny-llama", torch.float32), 5
    vocabulary = model.config.vocab_size
    monkeypatch.setattr(prompt_scores, "_LOGITS_BYTES", 4 * vocabulary * most)
    prompts = made_prompts(512)[2:5]
    engine: Any = make_engine(kind, models / "tiny-llama", dtype=torch.float32)
    with running(engine) as harness:
        rows: list[int] = []
        if kind == "vllm":
            runner = engine._core.model_executor.driver_worker.worker.model_runner
            compute = runner.model.compute_logits

            def counted(hidden: torch.Tensor) -> torch.Tensor:
                rows.append(len(hidden))
                logits: torch.Tensor = compute(hidden)
                return logits

            runner.model.compute_logits = counted
        else:
            head = engine._model.get_output_embeddings()
            head.register_forward_pre_hook(lambda _, args: rows.append(args[0].shape[-2]))
        asked = [request(prompt, prompt_logprobs=1, max_tokens=2) for prompt in prompts]
        results = harness.generate(asked)
    assert most <= max(rows) <= most + 2 * len(asked)  # and those that tokens follow from
    for one in asked:
        check(model, one.prompt, first(results, one), 1)


def test_a_part_that_is_computed_again_takes_the_place_of_the_first() -> None:
    scores = PromptScores((1, 2, 3, 0), alternatives=9)
    logits = torch.randn(4, 4)
    assert scores.part(0, 3, 1) is None, "nothing follows the last"
    for first_index, count in ((0, 2), (0, 1), (1, 3)):
        part = scores.part(5, first_index, count)
        assert part is not None
        assert list(part.rows) == list(range(5, 5 + part.count))
        scores.put(part.first_index, logits[first_index : first_index + part.count])
    told = scores.whole()
    rows = logits[:3].log_softmax(-1)
    torch.testing.assert_close(told.logprobs, rows[range(3), [2, 3, 0]])
    assert told.top_ids.shape == (3, 4), "as many as there are tokens"
    torch.testing.assert_close(told.top_logprobs, rows.sort(descending=True).values)
