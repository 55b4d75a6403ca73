"""Which nodes keep which prompts, as they tell it."""

from hypothesis import given
from hypothesis import strategies as st

from sllm.control.state.kept_prefixes import KeptPrefixes

NODES = st.sampled_from("abc")
NAMES = st.integers(0, 9)
KEPT = st.dictionaries(NAMES, st.floats(0.1, 9), max_size=4)
CHANGES = st.lists(
    st.one_of(
        st.tuples(st.just("replace"), NODES, KEPT, st.just(())),
        st.tuples(st.just("change"), NODES, KEPT, st.lists(NAMES, max_size=3)),
        st.tuples(st.just("forget"), NODES, st.just({}), st.just(())),
    )
)


@given(CHANGES, st.lists(NAMES, unique=True))
def test_a_node_saves_what_the_longest_does_that_it_keeps(
    changes: list[tuple[str, str, dict[int, float], list[int]]], names: list[int]
) -> None:
    kept, told = KeptPrefixes(), dict[str, dict[int, float]]()
    for what, node, changed, gone in changes:
        if what == "replace":
            kept.replace(node, changed)
            told[node] = dict(changed)
        elif what == "change":
            kept.change(node, changed, gone)
            left = {name: one for name, one in told.get(node, {}).items() if name not in gone}
            told[node] = left | changed
        else:
            kept.forget(node)
            told.pop(node, None)
        kept.check_integrity()
    expected = {
        node: next(theirs[name] for name in reversed(names) if name in theirs)
        for node, theirs in told.items()
        if any(name in theirs for name in names)
    }
    assert kept.saved(names) == expected


def test_several_prompts_are_saved_what_they_are_on_average() -> None:
    kept = KeptPrefixes()
    assert kept.saved_on_average([[1]]) == {}
    kept.replace("a", {1: 2.0})
    kept.replace("b", {2: 4.0})
    assert kept.saved_on_average([[1], [1, 2]]) == {"a": 2.0, "b": 2.0}
    assert kept.saved_on_average([]) == {}
