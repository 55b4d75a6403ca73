"""Concurrency that follows a target: on instances whose tokens are slower the more they have."""

from hypothesis import given
from hypothesis import strategies as st

from sllm.control.cluster.usage import Limit
from sllm.control.requests.concurrency import (
    FIRST_PAUSE,
    LEAST_SAMPLES,
    LEAST_SECONDS,
    TOO_SLOW,
    Window,
    tuned,
)

TARGET = 0.05


def window(times: list[float], at_once: int) -> Window:
    found = Window(0.0, [])
    for one in times:
        found.add(one, at_once)
    return found


def look(limit: Limit, seconds: float, at_once: int, now: float = 1e6, most: int = 64) -> Limit:
    return tuned(limit, window([seconds] * LEAST_SAMPLES, at_once), TARGET, most, now)


def settled(base: float, each: float, most: int, looks: int = 400) -> list[int]:
    """The limits of an instance that is always full, look by look."""
    limit, now, limits = Limit(most), 0.0, []
    for _ in range(looks):
        now += LEAST_SECONDS
        limit = look(limit, base + each * limit.requests, limit.requests, now, most)
        limits.append(limit.requests)
    return limits


@given(st.floats(0.0, 0.1), st.floats(0.0, 0.02), st.integers(1, 64))
def test_it_settles_where_tokens_come_in_time(base: float, each: float, most: int) -> None:
    limits = settled(base, each, most)
    assert all(1 <= one <= most for one in limits)
    fits = [one for one in range(1, most + 1) if base + each * one <= TOO_SLOW * TARGET]
    largest = max(fits, default=1)
    later = limits[100:]
    assert max(later) <= min(most, largest + 1)  # which is tried now and then
    assert sum(one > largest for one in later) <= len(later) / 5
    within = [one for one in range(1, most + 1) if base + each * one < 0.85 * TARGET]
    assert max(later) >= max(within, default=1)


def test_one_more_is_tried_only_where_all_slots_are_taken() -> None:
    assert look(Limit(4), TARGET / 2, at_once=4).requests == 5
    assert look(Limit(4), TARGET / 2, at_once=3).requests == 4
    assert look(Limit(4), TARGET / 2, at_once=4, most=4).requests == 4


def test_near_the_target_nothing_changes() -> None:
    for times in (0.9, 1.0, 1.09):
        assert look(Limit(4), times * TARGET, at_once=4).requests == 4


def test_what_was_too_much_is_not_tried_again_for_longer_each_time() -> None:
    limit = look(Limit(5), 2 * TARGET, at_once=5, now=100.0)
    assert (limit.requests, limit.retry_at) == (2, 100.0 + FIRST_PAUSE)
    assert look(limit, TARGET / 2, at_once=2, now=100.0 + FIRST_PAUSE / 2).requests == 2
    again = look(limit, TARGET / 2, at_once=2, now=100.0 + FIRST_PAUSE)
    assert again.requests == 3
    refused = look(again, 2 * TARGET, at_once=3, now=200.0)
    assert refused.retry_at == 200.0 + 2 * FIRST_PAUSE


def test_requests_from_before_do_not_lower_it_further() -> None:
    limit = look(Limit(8), 2 * TARGET, at_once=8)
    assert look(limit, 2 * TARGET, at_once=8).requests == limit.requests == 4


def test_one_who_reads_slowly_says_nothing_of_the_others() -> None:
    slow = [10.0] * (LEAST_SAMPLES // 3)
    found = tuned(Limit(4), window(slow + [TARGET] * LEAST_SAMPLES, 4), TARGET, 64, 0.0)
    assert found.requests == 4


def test_a_deployment_that_may_have_fewer_has() -> None:
    assert look(Limit(64), TARGET, at_once=8, most=8).requests == 8


@given(st.lists(st.floats(0.0, 1.0), max_size=1000))
def test_what_is_kept_is_bounded(times: list[float]) -> None:
    assert len(window(times, 1).times) <= 256
