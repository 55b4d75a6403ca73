"""Turns that instances have where more are asked for than fit."""

from sllm.control.orchestration.residency import Residency


def _residency() -> Residency:
    return Residency(factor=4.0, longest=30.0)


def test_who_comes_back_keeps_its_room_for_a_while() -> None:
    residency = _residency()
    residency.displaced("m", 10.0)
    residency.ready("i", "m", 2.0, 20.0)
    assert residency.resident(20.0) == {"i": 28.0}
    assert residency.resident(27.9) == {"i": 28.0}
    assert residency.resident(28.0) == {}


def test_who_was_never_displaced_has_no_turn() -> None:
    residency = _residency()
    residency.ready("i", "m", 2.0, 20.0)
    assert residency.resident(20.0) == {}


def test_who_was_displaced_long_ago_begins_anew() -> None:
    residency = _residency()
    residency.displaced("m", 0.0)
    residency.ready("i", "m", 2.0, 1000.0)
    assert residency.resident(1000.0) == {}


def test_a_turn_is_taken_once() -> None:
    residency = _residency()
    residency.displaced("m", 10.0)
    residency.ready("i1", "m", 2.0, 20.0)
    residency.ready("i2", "m", 2.0, 21.0)
    assert residency.resident(21.0).keys() == {"i1"}


def test_no_turn_is_longer_than_the_longest() -> None:
    residency = _residency()
    residency.displaced("m", 10.0)
    residency.ready("i", "m", 20.0, 31.0)
    assert residency.resident(31.0) == {"i": 61.0}


def test_only_those_that_may_still_come_back_are_remembered() -> None:
    residency = _residency()
    for number in range(1000):
        residency.displaced(f"m{number}", 100.0 * number)
    assert len(residency._displaced) <= 36  # an hour of them
