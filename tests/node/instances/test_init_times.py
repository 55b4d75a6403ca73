"""What starts took, as a node remembers it."""

import pytest

from sllm.node.instances.init_times import InitKey, InitTime, InitTimes


def test_each_checkpoint_and_engine_is_remembered_by_itself() -> None:
    times = InitTimes()
    times.observe(InitKey("a", "one"), InitTime(8, 1.0, 2.0))
    times.observe(InitKey("a", "other"), InitTime(8, 3.0, 4.0))
    assert times.times[InitKey("a", "one")] == InitTime(8, 1.0, 2.0)
    assert times.times[InitKey("a", "other")] == InitTime(8, 3.0, 4.0)


def test_starts_over_what_was_made_ready_are_told_apart() -> None:
    times = InitTimes()
    times.observe(InitKey("a", "one"), InitTime(8, 1.0, 4.0))
    times.observe(InitKey("a", "one", ready_made=True), InitTime(8, 1.0, 0.5))
    assert times.times[InitKey("a", "one")].attach == 4.0
    assert times.times[InitKey("a", "one", ready_made=True)].attach == 0.5


def test_one_start_that_was_held_up_does_not_count() -> None:
    times = InitTimes()
    for seconds in (1.0, 9.0, 1.5):
        times.observe(InitKey("a", "one"), InitTime(8, seconds, seconds))
    assert times.times[InitKey("a", "one")] == InitTime(8, 1.5, 1.5)


def test_checkpoints_of_one_size_learn_from_each_other() -> None:
    """They are most likely variants of one model; of another size or engine is another one."""
    times = InitTimes()
    times.observe(InitKey("held up", "one"), InitTime(8, 9.0, 9.0))
    times.observe(InitKey("other", "one"), InitTime(7, 5.0, 5.0))
    times.observe(InitKey("b", "one"), InitTime(8, 1.0, 2.0))
    times.observe(InitKey("c", "one"), InitTime(8, 1.0, 2.0))
    assert (
        times.times[InitKey("held up", "one")]
        == times.times[InitKey("c", "one")]
        == InitTime(8, 1.0, 2.0)
    )
    assert times.times[InitKey("other", "one")] == InitTime(7, 5.0, 5.0)


def test_the_newest_counts_most_over_all_models() -> None:
    times = InitTimes()
    for seconds in (1.0, 1.0, 1.0, 2.0):
        times.observe(InitKey("a", "one"), InitTime(8, 0.0, seconds))
    assert times.mean == pytest.approx(1.4)


def test_what_was_started_longest_ago_is_forgotten() -> None:
    times = InitTimes()
    for index in range(600):
        times.observe(InitKey(str(index), "one"), InitTime(8, 0.0, 1.0))
    assert InitKey("599", "one") in times.times
    assert InitKey("0", "one") not in times.times
    assert len(times.times) == 512
