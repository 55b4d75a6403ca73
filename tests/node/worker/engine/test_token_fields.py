"""What requests say of single tokens, on both engines: as vLLM has it, wherever it goes on."""

from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from sllm.node.worker.engine.interface import EngineRequest
from sllm.sampling import Sampling
from tests.node.worker.engine.test_engines import PROMPTS, request
from tests.node.worker.engines import ENGINES, Harness, make_engine, needs_vllm, running

TOKENS = 40
PROMPT = PROMPTS[3]
SEQUENCES = ((4,), (20, 31), (9, 9, 9))
"""Not to be generated."""
UNCHANGED = ("frequency",)
"""The model's text has no token twice to begin with."""

FIELDS: dict[str, dict[str, Any]] = {
    "repetition": {"repetition_penalty": 1.6},
    "repetition, the other way": {"repetition_penalty": 0.7},
    "presence": {"presence_penalty": -2.0},
    "frequency": {"frequency_penalty": 2.0},
    "frequency, the other way": {"frequency_penalty": -1.0},
    "all penalties": {
        "repetition_penalty": 1.2,
        "presence_penalty": 0.4,
        "frequency_penalty": 0.3,
    },
    "biases": {"logit_bias": ((138, -50.0), (40, -2.5), (77, 1.0))},
    "allowed tokens": {"allowed_token_ids": (5, 9, 40, 77, 78, 79, 200)},
    "allowed tokens and penalties": {
        "allowed_token_ids": tuple(range(30, 60)),
        "frequency_penalty": 1.0,
    },
}


@pytest.fixture(scope="module")
def by_vllm(models: Path) -> dict[str, list[int]]:
    """Greedy tokens of vLLM's own sampler, if there is a vLLM."""
    if find_spec("vllm") is None:
        return {}
    import_module("sllm.node.worker.engine.vllm")  # sets vLLM's environment
    from vllm.distributed.parallel_state import destroy_model_parallel

    from bench.inference.plain_vllm import PlainVllm

    plain = PlainVllm(models / "tiny-llama", "float32", kv_bytes=64 << 20)
    found = {}
    for name, fields in FIELDS.items():
        given = {
            key: dict(value) if key == "logit_bias" else list(value) if key[0] == "a" else value
            for key, value in fields.items()
        }
        request_id = plain.submit(PROMPT, TOKENS, **given)
        tokens: list[int] = []
        while len(tokens) < TOKENS:
            tokens += [token for one, token in plain.step().items() if one == request_id]
        found[name] = tokens
    destroy_model_parallel()  # a process has one model at a time
    return found


@pytest.fixture(scope="module", params=ENGINES)
def harness(
    models: Path, request: pytest.FixtureRequest, by_vllm: dict[str, list[int]]
) -> Iterator[Harness]:
    """An engine, made after vLLM's own is done with."""
    with running(make_engine(request.param, models / "tiny-llama", dtype=torch.float32)) as harness:
        yield harness


def asked(fields: dict[str, Any], **options: Any) -> EngineRequest:
    sampling = Sampling(**{"temperature": 0.0, "seed": 0, **fields})
    return request(PROMPT, sampling=sampling, **{"max_tokens": TOKENS, **options})


def tokens_of(harness: Harness, one: EngineRequest) -> list[int]:
    return harness.generate([one]).ids(one.request_id)


@needs_vllm
@pytest.mark.parametrize("name", FIELDS)
def test_greedy_tokens_are_those_of_vllms_sampler(
    harness: Harness, by_vllm: dict[str, list[int]], name: str
) -> None:
    found = tokens_of(harness, asked(FIELDS[name]))
    assert found == by_vllm[name]
    assert name in UNCHANGED or found != tokens_of(harness, asked({}))


def test_all_of_them_in_one_step_disturb_nobody(harness: Harness) -> None:
    requests = {name: asked(fields) for name, fields in {**FIELDS, "none": {}}.items()}
    alone = {name: tokens_of(harness, replace(one)) for name, one in requests.items()}
    results = harness.generate(requests.values())
    assert {name: results.ids(one.request_id) for name, one in requests.items()} == alone


@pytest.mark.parametrize("temperature", [0.0, 1.2])
@pytest.mark.parametrize("name", [*FIELDS, "sequences", "least"])
def test_a_generation_goes_on_as_it_would_have(
    harness: Harness, name: str, temperature: float
) -> None:
    options: dict[str, Any] = {"forbidden": SEQUENCES} if name == "sequences" else {}
    if name == "least":
        options["stop_token_ids"] = frozenset(range(0, 400, 2))
    fields = {"min_tokens": 12} if name == "least" else FIELDS.get(name, {})
    whole = asked({**fields, "temperature": temperature, "seed": 3}, **options)
    expected = tokens_of(harness, whole)
    rest = {}
    for cut in (1, 5, len(expected) - 1):
        one = asked({**fields, "temperature": temperature, "seed": 3}, **options)
        rest[cut] = replace(
            one,
            prompt=PROMPT + tuple(expected[:cut]),
            first_position=cut,
            max_tokens=TOKENS - cut,
        )
    results = harness.generate(rest.values())
    for cut, one in rest.items():
        assert results.ids(one.request_id) == expected[cut:], cut


def test_nothing_ends_it_before_the_least_number_of_tokens(harness: Harness) -> None:
    free = tokens_of(harness, asked({}))
    stops = frozenset(free)
    assert len(tokens_of(harness, asked({}, stop_token_ids=stops))) == 1
    found = tokens_of(harness, asked({"min_tokens": 9}, stop_token_ids=stops))
    assert len(found) >= 10
    assert stops.isdisjoint(found[:9])


def test_sequences_are_not_generated(harness: Harness) -> None:
    free = tokens_of(harness, asked({}))
    forbidden = (tuple(free[2:4]), tuple(free[8:11]), (free[20],))
    found = tokens_of(harness, asked({}, forbidden=forbidden))
    for sequence in forbidden:
        size = len(sequence)
        assert sequence not in [tuple(found[at : at + size]) for at in range(len(found))]


def test_where_nothing_else_is_allowed_they_are(harness: Harness) -> None:
    one = asked({"allowed_token_ids": (5,)}, forbidden=((5,),), max_tokens=4)
    assert tokens_of(harness, one) == [5] * 4


def test_logprobs_are_of_what_the_model_gave(harness: Harness) -> None:
    plain = asked({}, logprobs=2)
    first = harness.generate([plain]).tokens[plain.request_id][0]
    banned = asked({"logit_bias": ((first.token_id, -100.0),)}, logprobs=2, max_tokens=1)
    (other,) = harness.generate([banned]).tokens[banned.request_id]
    assert first.logprob
    assert other.logprob
    assert other.token_id != first.token_id
    assert other.logprob.top[0].token_id == first.token_id
    assert other.logprob.top[0].logprob == pytest.approx(first.logprob.top[0].logprob, abs=1e-4)


def test_a_request_that_leaves_no_token_ends_and_disturbs_nobody(harness: Harness) -> None:
    everything = frozenset(range(-5, 2000))
    other = asked({})
    expected = tokens_of(harness, replace(other))
    for temperature in (0.0, 1.0):
        lost = asked({"min_tokens": 3, "temperature": temperature}, stop_token_ids=everything)
        beside = asked({})
        results = harness.generate([lost, beside])
        assert results.broken == {lost.request_id}
        assert results.ids(beside.request_id) == expected
