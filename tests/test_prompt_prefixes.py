"""Names of what prompts begin with."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from sllm.prompt_prefixes import LENGTHS, NAMELESS, prefixes_of


@given(st.binary(max_size=2000), st.lists(st.integers(0, 2000), max_size=4))
def test_names_do_not_depend_on_the_parts_in_which_bytes_come(
    prompt: bytes, cuts: list[int]
) -> None:
    ends = [0, *sorted(cuts), len(prompt)]
    parts = [prompt[begin:end] for begin, end in pairwise(ends)]
    found = prefixes_of("a", parts)
    assert found == prefixes_of("a", [prompt])
    assert found.size_bytes == len(prompt)
    assert len(found.names) == sum(length <= len(prompt) for length in LENGTHS)


def test_what_goes_on_with_a_prompt_has_its_names_and_what_is_others_has_none_of_them() -> None:
    prompt = bytes(range(256)) * 8
    names = prefixes_of("a", [prompt]).names
    assert prefixes_of("a", [prompt, b"and more" * 100]).names[: len(names)] == names
    assert not set(names) & set(prefixes_of("b", [prompt]).names)
    later = prefixes_of("a", [prompt[:-1], b"?" * 1000]).names
    shared = sum(length < len(prompt) for length in LENGTHS)
    assert later[:shared] == names[:shared]
    assert not set(later[shared:]) & set(names)


def test_the_longest_that_two_prompts_share_covers_most_of_it() -> None:
    """So that what a node is said to save is not far from what it does."""
    assert all(b <= 1.26 * a for a, b in pairwise(LENGTHS))
    assert prefixes_of("a", [b"short"]).names == NAMELESS.names == ()
    shares = dict(prefixes_of("a", [bytes(400)]).shares())
    assert list(shares.values()) == [256 / 400, 320 / 400, 400 / 400]
