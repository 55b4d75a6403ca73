"""What one tenant may fill of what all share."""

from hypothesis import given
from hypothesis import strategies as st

from sllm.control.tenants.portions import fits

NAMES = ("a", "b", "c")


def test_whoever_is_alone_has_all_of_it() -> None:
    assert fits("a", 100, 100, {}, {"a": 1.0})
    assert not fits("a", 101, 100, {}, {"a": 1.0})


def test_what_is_kept_for_others_is_not_filled() -> None:
    weights = {"a": 1.0, "b": 3.0}
    assert fits("a", 62, 100, {}, weights)  # 12.5 of its own, and the half that is anybody's
    assert not fits("a", 63, 100, {}, weights)
    assert fits("b", 37, 100, {"a": 62}, weights)
    assert not fits("b", 39, 100, {"a": 62}, weights)


def test_a_tenant_that_is_new_finds_its_part_though_others_have_more_than_theirs_now() -> None:
    weights = dict.fromkeys(NAMES, 1.0)
    assert fits("c", 16, 100, {"a": 100}, weights)
    assert not fits("a", 1, 100, {"a": 100}, weights)


@given(
    weights=st.fixed_dictionaries({name: st.floats(0.1, 100.0) for name in NAMES}),
    asks=st.lists(st.tuples(st.sampled_from(NAMES), st.integers(1, 30)), max_size=60),
)
def test_nobody_keeps_another_from_its_part_and_the_room_is_never_overfull(
    weights: dict[str, float], asks: list[tuple[str, int]]
) -> None:
    used = dict.fromkeys(NAMES, 0.0)
    for name, more in asks:
        if fits(name, more, 100.0, used, weights):
            used[name] += more
    assert sum(used.values()) <= 100.0 + 1e-6
    for name in NAMES:
        left = 50.0 * weights[name] / sum(weights.values()) - used[name]
        assert left <= 0 or fits(name, left * (1 - 1e-9), 100.0, used, weights)
