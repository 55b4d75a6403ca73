import struct
from collections import Counter

import numpy as np
import pytest
import torch
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from sllm.node.worker.engine.sampler import Draw, draw_tokens, token_logprobs, uniforms
from sllm.sampling import Sampling

LOGITS = torch.tensor([[2.0, 1.0, 0.5, 0.0, -1.0, -3.0]])
SEEDS = st.integers(0, 2**64 - 1)


def draws(sampling: Sampling, count: int = 2000) -> Counter[int]:
    rows = [Draw(sampling, position) for position in range(count)]
    return Counter(draw_tokens(LOGITS.expand(count, -1), rows).tolist())


def test_numbers_are_the_halves_of_splitmix64() -> None:
    """The first outputs for the seed 1234567, as its authors' program gives them."""
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    found = uniforms([1234567 + 0x9E3779B97F4A7C15], 6)
    halves = [half for bits in published for half in (bits & 0xFFFFFFFF, bits >> 32)]
    expected = [((half & 0x7FFFFFFF) + 0.5) / 2**31 for half in halves]
    assert found[0].tolist() == pytest.approx(expected)


@pytest.mark.parametrize("count", [1, 7, 40_001])
def test_numbers_depend_on_key_and_index_alone(count: int) -> None:
    together = uniforms(range(5), count)
    assert np.array_equal(together[3:4], uniforms([3], count))
    assert np.array_equal(together, uniforms(range(5), 70_001)[:, :count])


def test_numbers_are_even_and_within_their_bounds() -> None:
    numbers = uniforms(range(100), 10_000)
    assert 0 < float(numbers.min()) < 1e-5
    assert 1 - 1e-5 < float(numbers.max()) < 1
    for limit in (0.01, 0.1, 0.5, 0.9):
        assert float((numbers < limit).mean()) == pytest.approx(limit, abs=0.002)


def test_rows_and_neighbours_have_nothing_in_common() -> None:
    numbers = uniforms(range(50), 2000)
    for matrix in (numbers, numbers[:, ::40].T):
        off_diagonal = np.corrcoef(matrix) - np.eye(50)
        assert abs(off_diagonal).max() < (0.12 if matrix is numbers else 0.6)


@given(seed=st.integers(0, 2**31), spread=st.floats(0, 30), width=st.integers(1, 300))
def test_tokens_that_are_passed_over_are_never_the_first(
    seed: int, spread: float, width: int
) -> None:
    """Logarithms of all of them lead to the same."""
    logits = torch.randn(4, width, generator=torch.Generator().manual_seed(seed)) * spread
    draws = [Draw(Sampling(seed=seed), row) for row in range(4)]
    keys = [xxhash.xxh3_64_intdigest(struct.pack("<QQ", seed, row)) for row in range(4)]
    numbers = torch.from_numpy(uniforms(keys, width))
    weights = (logits - logits.amax(-1, keepdim=True)).exp()
    expected = (weights / -torch.log1p(-numbers)).argmax(-1)
    assert torch.equal(draw_tokens(logits, draws), expected)


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    counts = draws(Sampling(seed=1), 20_000)
    for token, probability in enumerate(LOGITS.softmax(-1)[0].tolist()):
        assert counts[token] / 20_000 == pytest.approx(probability, abs=0.012)


def test_temperature_sharpens_and_flattens() -> None:
    cold, warm = draws(Sampling(temperature=0.2, seed=1)), draws(Sampling(temperature=5, seed=1))
    assert cold[0] > 1900
    assert min(warm[token] for token in range(6)) > 100


@pytest.mark.parametrize("temperature", [5e-324, 1e-30, 1e-9])
def test_a_temperature_next_to_zero_is_as_good_as_greedy(temperature: float) -> None:
    assert draws(Sampling(temperature=temperature, seed=1)) == {0: 2000}


def test_the_largest_temperature_makes_all_tokens_alike() -> None:
    assert len(draws(Sampling(temperature=1.7e308, seed=1))) == 6


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        (Sampling(top_k=1, seed=1), {0}),
        (Sampling(top_k=3, seed=1), {0, 1, 2}),
        (Sampling(top_k=600, seed=1), {0, 1, 2, 3, 4, 5}),
        (Sampling(top_p=0.5, seed=1), {0}),  # the first has 0.54
        (Sampling(top_p=0.6, seed=1), {0, 1}),
        (Sampling(min_p=0.3, seed=1), {0, 1}),  # the second has 0.37 of the first's
        (Sampling(min_p=1.0, seed=1), {0}),
        (Sampling(top_k=2, top_p=0.99, min_p=0.5, seed=1), {0}),
    ],
)
def test_filters_keep_what_they_say(sampling: Sampling, kept: set[int]) -> None:
    assert set(draws(sampling)) == kept


def test_a_nucleus_may_be_the_whole_vocabulary() -> None:
    logits = torch.zeros(1, 5000)  # more than are sorted at first
    sampling = Sampling(top_p=0.9999, seed=1)
    rows = [Draw(sampling, position) for position in range(300)]
    tokens = draw_tokens(logits.expand(300, -1), rows)
    assert tokens.min() < 500
    assert tokens.max() > 4500


@given(
    sampling=st.builds(
        Sampling,
        temperature=st.floats(1e-3, 10),
        top_p=st.floats(0.01, 1),
        top_k=st.integers(0, 60),
        min_p=st.floats(0, 1),
        seed=SEEDS,
    ),
    position=st.integers(0, 10**6),
    others=st.integers(1, 5),
    place=st.integers(0, 5),
)
def test_a_draw_does_not_depend_on_the_rest_of_the_batch(
    sampling: Sampling, position: int, others: int, place: int
) -> None:
    logits = torch.randn(others + 1, 50, generator=torch.Generator().manual_seed(position))
    place = min(place, others)
    batch = [Draw(Sampling(seed=row, top_k=row, top_p=0.9), row) for row in range(others + 1)]
    batch[place] = Draw(sampling, position)
    alone = draw_tokens(logits[place : place + 1], [batch[place]])
    assert draw_tokens(logits, batch)[place] == alone[0]


def test_logits_of_minus_infinity_are_never_drawn() -> None:
    logits = torch.full((500, 8), -torch.inf)
    logits[:, 5] = 1.0
    rows = [Draw(Sampling(temperature=1e30, seed=seed), 0) for seed in range(500)]
    assert set(draw_tokens(logits, rows).tolist()) == {5}


def test_drawing_leaves_the_logits_as_they_are() -> None:
    before = LOGITS.clone()
    draw_tokens(LOGITS, [Draw(Sampling(top_k=2, top_p=0.5, min_p=0.1, seed=1), 0)])
    assert torch.equal(LOGITS, before)


def test_logprobs_are_those_of_the_raw_distribution() -> None:
    expected = LOGITS.log_softmax(-1)[0].tolist()
    (logprob,) = token_logprobs(LOGITS, torch.tensor([2]), [3])
    assert logprob.logprob == pytest.approx(expected[2])
    assert [top.token_id for top in logprob.top] == [0, 1, 2]
    assert [top.logprob for top in logprob.top] == pytest.approx(expected[:3])


def test_every_row_gets_as_many_alternatives_as_it_asked_for() -> None:
    found = token_logprobs(LOGITS.expand(3, -1), torch.tensor([0, 1, 2]), [0, 20, 2])
    assert [len(logprob.top) for logprob in found] == [0, 6, 2]


def test_the_rounding_of_logits_hardly_ever_changes_a_draw() -> None:
    logits = torch.randn(3000, 500, generator=torch.Generator().manual_seed(0)) / 4
    rows = [Draw(Sampling(seed=1), position) for position in range(3000)]
    rounded = logits * (1 + 1e-6)
    assert torch.equal(draw_tokens(logits, rows), draw_tokens(rounded, rows))
