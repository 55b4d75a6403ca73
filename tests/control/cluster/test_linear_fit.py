"""Lines through observations: by hand, and against what made the observations."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sllm.control.cluster.linear_fit import Fit, Line


def _fit(*points: tuple[float, float]) -> Fit:
    fit = Fit()
    for x, y in points:
        fit = fit.observed(x, y)
    return fit


@given(st.floats(0, 10), st.floats(0.001, 10), st.lists(st.integers(0, 1000), min_size=2))
def test_a_line_is_found_again(base: float, slope: float, places: list[int]) -> None:
    line = _fit(*((x, base + slope * x) for x in places)).line
    assert line is not None
    assert line.at(places[0]) == pytest.approx(base + slope * places[0], rel=1e-3, abs=1e-3)


def test_nothing_observed_is_no_line() -> None:
    assert Fit().line is None


def test_one_place_says_nothing_of_others() -> None:
    assert _fit((10, 2), (10, 4)).line == Line(3.0, 0.0)


def test_a_line_neither_falls_nor_begins_below_zero() -> None:
    assert _fit((0, 4), (10, 2)).line == Line(3.0, 0.0)
    assert _fit((10, 1), (20, 10)).line == Line(0.0, (10 * 1 + 20 * 10) / (100 + 400))


def test_what_fades_counts_less() -> None:
    fit = _fit((0, 0), (10, 10)).faded(1e-9)
    line = fit.observed(0, 5).observed(10, 25).line
    assert line is not None
    assert line == pytest.approx(Line(5.0, 2.0), rel=1e-6)


def test_through_the_origin_goes_what_is_observed_at_a_single_place() -> None:
    fit = _fit((10, 2), (10, 4))
    assert not fit.spreads
    assert fit.proportional == Line(0.0, 0.3)
    assert _fit((0, 4)).proportional is None


@given(st.lists(st.tuples(st.integers(0, 1000), st.floats(0, 100)), min_size=1))
def test_no_line_of_the_kind_fits_better(points: list[tuple[int, float]]) -> None:
    fit = _fit(*points)
    line = fit.line
    assert line is not None

    def error(base: float, slope: float) -> float:
        return sum((base + slope * x - y) ** 2 for x, y in points)

    if fit.spreads:
        mean = fit.y / fit.weight
        others = [Line(mean, 0.0), fit.proportional or line]
        near = [
            Line(line.base + d, line.slope + e) for d in (-0.1, 0, 0.1) for e in (-1e-3, 0, 1e-3)
        ]
        for other in [*others, *near]:
            if other.base >= 0 and other.slope >= 0:
                assert error(*line) <= error(*other) * (1 + 1e-6) + 1e-6
