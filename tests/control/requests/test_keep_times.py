"""Keep times: what must hold of all of them, and against a search by brute force."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sllm.control.requests.keep_times import Layer, keep_times
from sllm.control.requests.pauses import EDGES, LEAST_SEEN, Arrivals, Pauses

SECONDS = st.floats(0.0, 1e5)
LAYERS = st.builds(Layer, st.floats(0.0, 1.0), st.floats(0.0, 100.0), st.floats(0.0, 1e4))


def pauses_of(*seconds: float) -> Pauses:
    pauses = Pauses()
    for one in seconds:
        pauses = pauses.plus(one)
    return pauses


def cost(pauses: Pauses, layer: Layer, kept: float) -> float:
    """What is expected of keeping a layer so long, worked out at length."""
    points, survival = (0.0, *EDGES), pauses.survival()

    def chance(at: float) -> float:
        for index, (begin, end) in enumerate(itertools.pairwise(points)):
            if at <= end:
                part = (at - begin) / (end - begin)
                return survival[index] + part * (survival[index + 1] - survival[index])
        return survival[-1]

    steps = sorted({0.0, kept, *(edge for edge in EDGES if edge < kept)})
    held = sum((b - a) * (chance(a) + chance(b)) / 2 for a, b in itertools.pairwise(steps))
    return layer.rent * held + layer.saving * chance(kept)


# --- pauses -------------------------------------------------------------------------------------


@given(st.lists(SECONDS, max_size=300))
def test_survival_falls_from_one_and_never_ends(seconds: list[float]) -> None:
    survival = pauses_of(*seconds).survival()
    assert survival[0] == 1.0
    assert all(earlier >= later for earlier, later in itertools.pairwise(survival))
    assert survival[-1] > 0


@given(st.lists(SECONDS, max_size=300))
def test_however_many_there_were_their_weight_is_bounded(seconds: list[float]) -> None:
    pauses = pauses_of(*seconds)
    assert pauses.seen <= min(len(seconds), 64) + 1e-9
    assert len(pauses.weights) == len(Pauses().weights)


def test_a_few_pauses_say_nothing() -> None:
    assert not pauses_of(*[1.0] * int(LEAST_SEEN - 1)).suffice
    assert pauses_of(*[1.0] * 32).suffice


def test_what_has_changed_is_soon_all_that_counts() -> None:
    before, after = [1.0] * 200, [100.0] * 200
    assert pauses_of(*before, *after).survival()[EDGES.index(EDGES[30])] > 0.9


def test_only_what_comes_alone_ends_a_pause() -> None:
    arrivals = Arrivals()
    arrivals.arrived("m", 0.0, alone=True)  # the first of all ends none
    arrivals.arrived("m", 1.0, alone=False)
    arrivals.ended("m", 2.0)
    arrivals.arrived("m", 3.0, alone=False)  # another one is still under way
    arrivals.ended("m", 4.0)
    assert arrivals.of("m").seen == 0
    arrivals.arrived("m", 9.0, alone=True)
    assert arrivals.of("m") == pauses_of(5.0)
    arrivals.forget("m")
    assert arrivals.of("m").seen == 0


# --- keep times ---------------------------------------------------------------------------------


@given(st.lists(SECONDS, min_size=20, max_size=60), LAYERS)
def test_no_other_time_would_cost_less(seconds: list[float], layer: Layer) -> None:
    pauses = pauses_of(*seconds)
    (kept,) = keep_times(pauses, [layer])
    assert 0 <= kept <= layer.longest
    others = [0.0, layer.longest, *(edge for edge in EDGES if edge < layer.longest)]
    others += [(one + other) / 2 for one, other in itertools.pairwise(sorted(others))]
    least = min(cost(pauses, layer, other) for other in others)
    assert cost(pauses, layer, kept) == pytest.approx(least, rel=1e-6, abs=1e-9)


@given(st.lists(SECONDS, min_size=20, max_size=40), st.lists(LAYERS, max_size=4))
def test_no_layer_outlives_the_one_below_it(seconds: list[float], layers: list[Layer]) -> None:
    times = keep_times(pauses_of(*seconds), layers)
    assert len(times) == len(layers)
    assert all(upper <= lower for upper, lower in itertools.pairwise(times))
    assert all(time <= layer.longest for time, layer in zip(times, layers, strict=True))


@given(st.lists(SECONDS, min_size=20, max_size=40), LAYERS, st.floats(1.0, 10.0))
def test_what_is_dearer_stays_no_longer_and_what_saves_more_no_shorter(
    seconds: list[float], layer: Layer, times: float
) -> None:
    pauses = pauses_of(*seconds)
    (kept,) = keep_times(pauses, [layer])
    dearer = Layer(layer.rent * times, layer.saving, layer.longest)
    better = Layer(layer.rent, layer.saving * times, layer.longest)
    assert keep_times(pauses, [dearer])[0] <= kept <= keep_times(pauses, [better])[0]


def test_what_costs_nothing_stays_and_what_saves_nothing_goes() -> None:
    pauses = pauses_of(*[1.0] * 20)
    assert keep_times(pauses, [Layer(0.0, 1.0, 60.0)]) == (60.0,)
    assert keep_times(pauses, [Layer(1.0, 0.0, 60.0)]) == (0.0,)


def test_bursts_are_waited_out_and_what_lies_between_them_is_not() -> None:
    pauses = pauses_of(*[*[1.0] * 9, 3600.0] * 6)
    instance, weights = keep_times(pauses, [Layer(0.01, 1.0, 600.0), Layer(1e-5, 5.0)])
    assert 1.0 <= instance <= 2.0
    assert weights >= 3600.0


def test_a_model_that_is_asked_for_once_a_day_is_not_kept() -> None:
    assert keep_times(pauses_of(*[86_400.0] * 40), [Layer(0.01, 1.0, 600.0)]) == (0.0,)
