"""How fast calls are refused."""

from hypothesis import given
from hypothesis import strategies as st

from sllm.control.tenants.refusals import Refusals


def test_the_first_of_a_second_are_refused_at_once_and_those_after_them_in_turn() -> None:
    refusals = Refusals()
    late = [round(refusals.count("a", now=7.0), 3) for _ in range(103)]
    assert late == [0.0] * 100 + [0.02, 0.04, 0.06]
    assert refusals.is_flooded("a", 7.0)
    assert not refusals.is_flooded("b", 7.0)
    assert refusals.count("b", 7.0) == 0


def test_whoever_calls_slowly_is_never_kept_waiting() -> None:
    refusals = Refusals()
    assert all(refusals.count("a", now=0.03 * call) == 0 for call in range(1000))


def test_a_flood_is_over_when_it_is() -> None:
    refusals = Refusals()
    assert max(refusals.count("a", 0.0) for _ in range(10_000)) == 5.0
    assert refusals.is_flooded("a", 4.9)
    assert not refusals.is_flooded("a", 5.1)


@given(callers=st.integers(1, 40))
def test_callers_who_wait_for_their_answer_are_slowed_to_the_rate(callers: int) -> None:
    """However many they are: each calls again as soon as it was refused."""
    refusals, due, answered = Refusals(), [0.0] * callers, 0
    while (now := min(due)) < 20.0:
        due[due.index(now)] = now + max(0.001, refusals.count("a", now))
        answered += 1
    assert answered <= 20 * 50 + 100 + callers
