"""Calls of a tenant are let through at its rate, and no faster, however they come."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sllm.control.tenants.call_meter import CallMeter


def test_a_seconds_worth_may_come_at_once() -> None:
    meter = CallMeter()
    assert [meter.take("a", 2.0, 10.0) for _ in range(3)] == pytest.approx([0.0, 0.0, 0.5])
    assert meter.take("b", 2.0, 10.0) == 0.0
    assert meter.take("a", 2.0, 10.5) == 0.0


def test_less_than_one_a_second_is_one_at_a_time() -> None:
    meter = CallMeter()
    assert [meter.take("a", 0.5, now) for now in (10.0, 11.0, 12.0)] == [0.0, 1.0, 0.0]


def test_none_may_be_none() -> None:
    assert CallMeter().take("a", 0.0, 10.0) > 0


def test_who_may_make_more_need_not_wait_for_what_was_taken_before() -> None:
    meter = CallMeter()
    assert meter.take("a", 0.001, 10.0) == 0.0
    assert meter.take("a", 0.001, 11.0) == pytest.approx(999.0)
    assert meter.take("a", 10.0, 12.0) == pytest.approx(0.1)
    assert meter.take("a", 10.0, 12.1) == 0.0


def test_what_is_told_of_the_lowest_rate_is_a_time() -> None:
    meter = CallMeter()
    assert [meter.take("a", 5e-324, 10.0) for _ in range(2)] == [0.0, 86_400.0]


@given(
    pauses=st.lists(st.floats(0.0, 3.0), min_size=1, max_size=60),
    rate=st.floats(0.1, 20.0),
)
def test_no_pattern_gets_more_than_its_rate(pauses: list[float], rate: float) -> None:
    meter, now, taken = CallMeter(), 100.0, 0
    for pause in pauses:
        now += pause
        wait = meter.take("a", rate, now)
        taken += not wait
        if wait:  # whoever waits as told is let through then
            now += wait * (1 + 1e-9) + 1e-9
            assert meter.take("a", rate, now) == 0.0
            taken += 1
    assert taken <= max(rate, 1.0) + rate * (now - 100.0) + 1e-3
