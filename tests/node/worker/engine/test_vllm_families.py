"""The engine on vLLM beside vLLM itself and transformers, for each family of models."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch

from sllm.errors import UnsupportedModel
from sllm.node.worker.engine.interface import Capacity
from sllm.sampling import Sampling
from tests.node.worker.engine.families import CONTEXT, FAMILIES, VOCABULARY, Family, make_family
from tests.node.worker.engine.test_engines import GREEDY, request
from tests.node.worker.engines import Harness, make_engine, needs_vllm, running

pytestmark = needs_vllm
ROUNDED = frozenset({"Llama", "Gemma 2", "Qwen 2 MoE"})
"""Families that run in bfloat16 always: plain, with a cap of scores, and with experts."""
EXACT = frozenset(family.name for family in FAMILIES)
"""Those that run in float32 always."""


def cases(exact: frozenset[str], rounded: frozenset[str]) -> list[Any]:
    """All families in both types; at night alone those that are not named for a type."""
    return [
        pytest.param(
            (family, dtype),
            id=f"{family.name}-{str(dtype)[6:]}",
            marks=() if family.name in always else pytest.mark.nightly,
        )
        for family in FAMILIES
        for dtype, always in ((torch.float32, exact), (torch.bfloat16, rounded))
    ]


SEEDED = Sampling(temperature=1.0, top_p=0.95, seed=42)
NEW_TOKENS = 20
CAPACITY = Capacity(kv_tokens=8 * CONTEXT, max_requests=32)
LENGTHS = (1, 18, 33, 150)
"""Of prompts: within a page of the cache and across several."""
NEARLY = "Qwen 2 MoE-float32"
"""The gate of its shared expert has one output, for which MKL rounds in another order where other
rows are beside."""


def made_prompts(lengths: tuple[int, ...], seed: int) -> list[tuple[int, ...]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        tuple(torch.randint(9, VOCABULARY, (length,), generator=generator).tolist())
        for length in lengths
    ]


PROMPTS = made_prompts(LENGTHS, seed=5)
OTHERS = made_prompts((3, 17, 64, 300, 31, 99), seed=6)


@dataclass(frozen=True)
class Made:
    """A family's model: its files, and transformers' own."""

    directory: Path
    reference: Any

    @cached_property
    def expected(self) -> list[tuple[int, ...]]:
        """Greedy tokens of transformers in float32."""
        return [
            tuple(
                self.reference.generate(
                    torch.tensor([prompt]), max_new_tokens=NEW_TOKENS, do_sample=False
                )[0, len(prompt) :].tolist()
            )
            for prompt in PROMPTS
        ]


@pytest.fixture(scope="module", params=cases(EXACT, ROUNDED))
def case(request: pytest.FixtureRequest) -> tuple[Family, torch.dtype]:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def made(case: tuple[Family, torch.dtype], tmp_path_factory: pytest.TempPathFactory) -> Made:
    directory = tmp_path_factory.mktemp("family")
    model = make_family(case[0], directory)
    model.generation_config.eos_token_id = None  # every one is as long as asked for
    return Made(directory, model)


@pytest.fixture(scope="module")
def dtype(case: tuple[Family, torch.dtype]) -> torch.dtype:
    return case[1]


@pytest.fixture(scope="module")
def harness(made: Made, dtype: torch.dtype) -> Iterator[Harness]:
    engine: Any = make_engine("vllm", made.directory, CAPACITY, dtype)
    with running(engine) as harness:
        engine._commands.put(lambda: torch.set_num_threads(2))  # as larger models have them
        yield harness


@pytest.fixture
def case_name(request: pytest.FixtureRequest) -> str:
    """Of the case."""
    return str(request.node.name)


def tokens(harness: Harness, prompts: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    asked = [request(prompt, max_tokens=NEW_TOKENS) for prompt in prompts]
    results = harness.generate(asked)
    return [tuple(results.ids(one.request_id)) for one in asked]


def test_greedy_tokens_are_vllms_own_and_in_float32_those_of_transformers(
    made: Made, dtype: torch.dtype, harness: Harness
) -> None:
    from bench.inference.plain_vllm import PlainVllm

    ours = tokens(harness, PROMPTS)
    plain = PlainVllm(made.directory, str(dtype)[6:], kv_bytes=64 << 20)
    assert ours == [tuple(one) for one in plain.generate(PROMPTS, NEW_TOKENS)]
    if dtype is torch.float32:
        assert ours == made.expected
    assert len(set(ours)) == len(PROMPTS)


def test_continuations_are_what_would_have_come(
    made: Made, dtype: torch.dtype, harness: Harness
) -> None:
    """Beside others, in an engine that has computed them before, and in one that has not."""
    wholes = [
        request(prompt, sampling=sampling, max_tokens=NEW_TOKENS)
        for prompt in PROMPTS
        for sampling in (GREEDY, SEEDED)
    ]
    results = harness.generate(wholes)
    expected = [tuple(results.ids(one.request_id)) for one in wholes]

    def go_on(harness: Harness, cuts: tuple[int, ...]) -> None:
        rest = {
            (number, cut): request(
                (*whole.prompt, *expected[number][:cut]),
                sampling=whole.sampling,
                max_tokens=NEW_TOKENS - cut,
                first_position=cut,
            )
            for number, whole in enumerate(wholes)
            for cut in cuts
        }
        others = [request(prompt, sampling=SEEDED, max_tokens=30) for prompt in OTHERS]
        results = harness.generate([*rest.values(), *others])
        for (number, cut), one in rest.items():
            assert tuple(results.ids(one.request_id)) == expected[number][cut:], (number, cut)

    go_on(harness, (1, 10, NEW_TOKENS - 1))
    with running(make_engine("vllm", made.directory, CAPACITY, dtype)) as elsewhere:
        go_on(elsewhere, (7,))


@pytest.mark.parametrize("case", cases(frozenset({"GPT-2"}), ROUNDED), indirect=True)
def test_ready_made_weights_give_the_same_bits(
    made: Made, dtype: torch.dtype, harness: Harness
) -> None:
    making: Any = make_engine("vllm", made.directory, CAPACITY, dtype)
    ready = making.make_ready()
    expected = logprobs_of(harness)
    engine: Any = make_engine("vllm", made.directory, CAPACITY, dtype, ready=ready)
    with running(engine) as over_ready:
        engine._commands.put(lambda: torch.set_num_threads(2))
        assert logprobs_of(over_ready) == expected
    name, norm = next((name, one) for name, one in ready.plain.items() if one.ndim == 1)
    smaller = replace(ready, plain={**ready.plain, name: norm[:1]})
    unfit: Any = make_engine("vllm", made.directory, CAPACITY, dtype, ready=smaller)
    with pytest.raises(UnsupportedModel, match=re.escape(name)):  # kernels would read beyond it
        Harness(unfit)


def logprobs_of(harness: Harness) -> list[list[tuple[int, float]]]:
    """Tokens of all prompts, one prompt at a time, with their logprobs.

    Of prompts that are in the cache: how many rows are computed at once may decide the last bits.
    """
    harness.generate([request(prompt, max_tokens=1) for prompt in PROMPTS])
    found = []
    for prompt in PROMPTS:
        one = request(prompt, max_tokens=NEW_TOKENS, logprobs=0)
        tokens = harness.generate([one]).tokens[one.request_id]
        found.append([(each.token_id, each.logprob.logprob) for each in tokens if each.logprob])
    return found


def test_others_in_a_step_do_not_change_a_bit(harness: Harness, case_name: str) -> None:
    """Long ones among them, whose attention could be divided among threads."""
    (long,) = made_prompts((400,), seed=7)
    others = [request(prompt, max_tokens=30) for prompt in OTHERS]

    def logprobs(beside: list[Any]) -> list[float]:
        one = request(long, max_tokens=12, logprobs=0)
        results = harness.generate([one, *beside])
        found = [token.logprob for token in results.tokens[one.request_id]]
        return [each.logprob for each in found if each]

    harness.generate([request(long, max_tokens=1)])  # from now on the prompt is in the cache
    alone = logprobs([])
    assert len(alone) == 12
    rounding = 1e-5 if NEARLY in case_name else 0.0
    assert logprobs(others) == pytest.approx(alone, rel=rounding, abs=0.0)
