"""Tokens a minute."""

from hypothesis import given
from hypothesis import strategies as st

from sllm.control.tenants.token_meter import TokenMeter

MINUTE = 60.0


def test_a_tenant_that_has_used_its_minute_waits_until_some_has_run_out() -> None:
    meter = TokenMeter()
    meter.count("a", 59, per_minute=60, now=5.0)
    assert meter.wait("a", per_minute=60, now=5.0) == 0
    meter.count("a", 11, per_minute=60, now=5.0)
    waits = [meter.wait("a", per_minute=60, now=now) for now in (5.0, 15.5, 16.0)]
    assert waits == [11.0, 0.5, 0.0]
    assert meter.wait("b", per_minute=60, now=5.0) == 0


def test_a_tenant_that_may_use_none_never_does() -> None:
    assert TokenMeter().wait("a", per_minute=0, now=0.0) == MINUTE


@given(
    steps=st.lists(st.tuples(st.integers(0, 50), st.floats(0.0, 10.0)), max_size=40),
    per_minute=st.integers(1, 1000),
)
def test_over_any_time_no_more_is_used_than_was_allowed(
    steps: list[tuple[int, float]], per_minute: int
) -> None:
    """A minute's worth at once, the rate from then on, and what a request under way runs over."""
    meter, used, largest, now = TokenMeter(), 0, 0, 0.0
    for tokens, seconds in steps:
        if not meter.wait("a", per_minute, now):
            meter.count("a", tokens, per_minute, now)
            used, largest = used + tokens, max(largest, tokens)
        assert used <= per_minute * (1 + now / MINUTE) + largest + 1e-6
        now += seconds


@given(excess=st.integers(0, 1000), per_minute=st.integers(1, 1000))
def test_whoever_waits_as_long_as_told_is_let_in(excess: int, per_minute: int) -> None:
    meter = TokenMeter()
    meter.count("a", per_minute + excess, per_minute, 1e6)
    later = 1e6 + meter.wait("a", per_minute, 1e6)
    assert meter.wait("a", per_minute, later) == 0
