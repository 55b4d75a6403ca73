import math

import pytest
from serverlessllm.v1.types_pb2 import SamplingParams

from sllm.errors import InvalidSampling
from sllm.sampling import MAX_SEED, Sampling


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0),
        Sampling(top_p=1e-9, top_k=10**6, min_p=1, seed=MAX_SEED),
        Sampling(seed=0),
        Sampling(repetition_penalty=100, presence_penalty=-2, frequency_penalty=2),
        Sampling(logit_bias=((0, -100.0), (7, 100.0)), allowed_token_ids=(0,), min_tokens=9),
        Sampling(bad_words=("x" * 1000,) * 128),
    ],
)
def test_values_within_bounds_are_valid(sampling: Sampling) -> None:
    sampling.validate()


@pytest.mark.parametrize(
    ("sampling", "name"),
    [
        (Sampling(temperature=-0.1), "temperature"),
        (Sampling(temperature=math.nan), "temperature"),
        (Sampling(temperature=math.inf), "temperature"),
        (Sampling(top_p=0), "top_p"),
        (Sampling(top_p=1.01), "top_p"),
        (Sampling(top_p=math.nan), "top_p"),
        (Sampling(top_k=-1), "top_k"),
        (Sampling(min_p=-0.1), "min_p"),
        (Sampling(min_p=1.1), "min_p"),
        (Sampling(min_p=math.nan), "min_p"),
        (Sampling(repetition_penalty=0), "repetition_penalty"),
        (Sampling(repetition_penalty=1e-38), "repetition_penalty"),
        (Sampling(repetition_penalty=math.inf), "repetition_penalty"),
        (Sampling(repetition_penalty=math.nan), "repetition_penalty"),
        (Sampling(presence_penalty=2.1), "presence_penalty"),
        (Sampling(presence_penalty=math.nan), "presence_penalty"),
        (Sampling(frequency_penalty=-2.1), "frequency_penalty"),
        (Sampling(logit_bias=((1, 101.0),)), "logit_bias"),
        (Sampling(logit_bias=((1, math.nan),)), "logit_bias"),
        (Sampling(logit_bias=((-1, 1.0),)), "logit_bias"),
        (Sampling(logit_bias=tuple((token, 1.0) for token in range(1025))), "logit_bias"),
        (Sampling(allowed_token_ids=(-1,)), "allowed_token_ids"),
        (Sampling(allowed_token_ids=tuple(range(65_537))), "allowed_token_ids"),
        (Sampling(min_tokens=-1), "min_tokens"),
        (Sampling(bad_words=("",)), "bad_words"),
        (Sampling(bad_words=("a", "  ")), "bad_words"),
        (Sampling(bad_words=("x" * 1001,)), "bad_words"),
        (Sampling(bad_words=("x",) * 129), "bad_words"),
        (Sampling(seed=-1), "seed"),
        (Sampling(seed=MAX_SEED + 1), "seed"),
    ],
)
def test_values_out_of_bounds_are_refused_by_name(sampling: Sampling, name: str) -> None:
    with pytest.raises(InvalidSampling, match=name):
        sampling.validate()


def test_there_are_no_fewer_tokens_than_at_least() -> None:
    Sampling(min_tokens=5).validate(max_tokens=5)
    with pytest.raises(InvalidSampling, match="min_tokens must be from 0 to max_tokens, 4"):
        Sampling(min_tokens=5).validate(max_tokens=4)


def test_what_is_set_on_the_wire_is_all_there_is() -> None:
    message = SamplingParams(
        temperature=0,
        presence_penalty=1.5,
        logit_bias={9: 1.0, 3: -2.0},
        bad_words=["a", "b"],
        allowed_token_ids=[4, 2],
        min_tokens=3,
    )
    given = {field.name: value for field, value in message.ListFields()}
    assert Sampling.of(given) == Sampling(
        temperature=0,
        presence_penalty=1.5,
        logit_bias=((3, -2.0), (9, 1.0)),
        bad_words=("a", "b"),
        allowed_token_ids=(4, 2),
        min_tokens=3,
    )
    assert {field.name for field in SamplingParams.DESCRIPTOR.fields} == set(Sampling.__slots__)
