"""What starts took, as a node remembers it."""

import pytest

from sllm.node.inits import Inits, InitTime


def test_each_checkpoint_and_engine_is_remembered_by_itself() -> None:
    inits = Inits()
    inits.observe(("a", "one"), InitTime(8, 1.0, 2.0))
    inits.observe(("a", "other"), InitTime(8, 3.0, 4.0))
    assert inits.times["a", "one"] == InitTime(8, 1.0, 2.0)
    assert inits.times["a", "other"] == InitTime(8, 3.0, 4.0)


def test_the_newest_counts_most_and_none_decides_alone() -> None:
    inits = Inits()
    for seconds in (1.0, 1.0, 1.0, 2.0):
        inits.observe(("a", "one"), InitTime(8, 0.0, seconds))
    assert 1.2 < inits.times["a", "one"].attach < 1.8
    assert inits.mean == pytest.approx(inits.times["a", "one"].attach)


def test_what_was_started_longest_ago_is_forgotten() -> None:
    inits = Inits()
    for index in range(600):
        inits.observe((str(index), "one"), InitTime(8, 0.0, 1.0))
    assert ("599", "one") in inits.times
    assert ("0", "one") not in inits.times
    assert len(inits.times) == 512
