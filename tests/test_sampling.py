import math

import pytest

from sllm.errors import InvalidSampling
from sllm.sampling import MAX_SEED, Sampling


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0),
        Sampling(top_p=1e-9, top_k=10**6, min_p=1, seed=MAX_SEED),
        Sampling(seed=0),
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
        (Sampling(seed=-1), "seed"),
        (Sampling(seed=MAX_SEED + 1), "seed"),
    ],
)
def test_values_out_of_bounds_are_refused_by_name(sampling: Sampling, name: str) -> None:
    with pytest.raises(InvalidSampling, match=name):
        sampling.validate()
