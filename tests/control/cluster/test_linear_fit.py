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
