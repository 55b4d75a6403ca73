"""Times between our types and the protocol's messages."""

from hypothesis import given
from hypothesis import strategies as st

from sllm.control.wire import common


@given(st.floats(1.7e9, 2.5e9))
def test_a_moment_of_today_stays_the_same(moment: float) -> None:
    assert common.seconds(common.timestamp(moment)) == moment


@given(st.floats(0.0, 1e7))
def test_a_duration_is_told_to_the_nanosecond_and_then_stays_the_same(seconds: float) -> None:
    told = common.seconds(common.duration(seconds))
    assert abs(told - seconds) < 1e-9
    assert common.duration(told) == common.duration(seconds)
