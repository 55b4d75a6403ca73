"""A leadership gives no order at a moment at which somebody else may lead."""

import pytest

from sllm import errors
from sllm.clock import ManualClock
from sllm.control.election.leadership import Leadership


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(100.0)


@pytest.fixture
def leadership(clock: ManualClock) -> Leadership:
    return Leadership(7, since=1, until=103.0, clock=clock)


def stale(term: str) -> errors.StaleTerm:
    return errors.StaleTerm("late", metadata={"term": term})


def test_it_lasts_as_long_as_its_lease(leadership: Leadership, clock: ManualClock) -> None:
    clock.advance(2.9)
    assert leadership.term() == 7
    clock.advance(0.1)
    with pytest.raises(errors.NotLeader, match="leads no more"):
        leadership.term()
    assert not leadership.ended.is_set(), "nobody has noticed yet, and no order is given"


def test_it_lasts_longer_when_its_lease_does(leadership: Leadership, clock: ManualClock) -> None:
    leadership.extend(104.0)
    leadership.extend(103.5)  # of an answer that came late
    clock.advance(3.9)
    assert leadership.term() == 7


def test_once_given_up_it_is_over(leadership: Leadership) -> None:
    leadership.give_up()
    leadership.extend(1_000.0)
    assert leadership.seconds_left == 0
    with pytest.raises(errors.NotLeader):
        leadership.term()


def test_a_node_that_knows_a_later_leader_ends_it(leadership: Leadership) -> None:
    for told in ("", "7", "6", "none"):
        leadership.refused(stale(told))
        assert leadership.term() == 7, "that is no later one"
    leadership.refused(stale("9"))
    assert leadership.ended.is_set()
    assert leadership.later_term == 9
