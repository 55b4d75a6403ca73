"""What one more instance is taken to take, by what is known of others."""

import pytest

from sllm.own_memory import expected


@pytest.mark.parametrize(
    ("same", "others", "found"),
    [
        ((), (), 64),
        ((0,), (0,), 64),
        ((30, 0, 40), (30, 0, 40, 400), 40),
        ((0,), (0, 30, 50), 40),
        ((), (30, 50), 40),
    ],
)
def test_the_nearest_that_was_measured_counts(
    same: tuple[int, ...], others: tuple[int, ...], found: int
) -> None:
    assert expected(same, others, 64) == found
