"""What one more instance is taken to take, by what is known of others."""

import pytest

from sllm.own_memory import Taken, expected

A = "a"
PLAIN = Taken("b", 30, 0)
COPIES = Taken("c", 500, 450)
UNKNOWN = Taken("d", 40)


@pytest.mark.parametrize(
    ("present", "found"),
    [
        ((), 64),
        ((Taken(A, 0),), 64),
        ((Taken(A, 30), Taken(A, 0), Taken(A, 40), COPIES), 40),
        ((Taken(A, 0), Taken("b", 0), Taken("b", 30), Taken("c", 50)), 40),
        ((Taken("b", 30), Taken("c", 50)), 40),
    ],
)
def test_the_nearest_that_was_measured_counts(present: tuple[Taken, ...], found: int) -> None:
    assert expected(A, None, present, 64) == found


@pytest.mark.parametrize(
    ("private", "present", "found"),
    [
        (400, (), 464),
        (400, (Taken(A, 0, 400),), 464),  # a first start beside another
        (400, (Taken(A, 390, 400), COPIES), 390),  # measured is better than estimated
        (400, (PLAIN, UNKNOWN, COPIES), 435),  # on top of what those take that copy nothing
        (400, (COPIES,), 464),
        (0, (COPIES,), 64),
        (0, (PLAIN, COPIES), 30),
        (10, (Taken("b", 50, 20),), 40),  # what those take beside the little that they copy
    ],
)
def test_what_is_copied_is_known_before_anything_was_measured(
    private: int, present: tuple[Taken, ...], found: int
) -> None:
    assert expected(A, private, present, 64) == found
