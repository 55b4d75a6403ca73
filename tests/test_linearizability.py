"""The checker itself: histories of a register that are known to be right, or wrong."""

from typing import TypeAlias

import pytest

from tests.linearizability import Event, explained

Asked: TypeAlias = int | None
"""What is written. None: it is read."""


def step(value: int, asked: Asked) -> tuple[int, int]:
    return (value, value) if asked is None else (asked, asked)


def write(value: int, began: float, ended: float | None) -> Event[Asked, int]:
    return Event(began, ended, value, value)


def read(value: int, began: float, ended: float | None) -> Event[Asked, int]:
    return Event(began, ended, None, value)


RIGHT = {
    "nothing": [],
    "one after the other": [write(1, 0, 1), read(1, 2, 3)],
    "before its beginning": [read(0, 0, 1), write(1, 2, 3)],
    "either, while it goes on": [write(1, 0, 9), read(0, 1, 2), read(1, 3, 4)],
    "lost, and not done": [write(1, 0, None), read(0, 5, 6)],
    "lost, and done late": [write(1, 0, None), read(0, 1, 2), read(1, 3, 4)],
    "two at once, the other way round": [write(1, 0, 9), write(2, 1, 8), read(1, 10, 11)],
}
WRONG = {
    "stale": [write(1, 0, 1), read(0, 2, 3)],
    "ahead of its time": [read(1, 0, 1), write(1, 2, 3)],
    "back again": [write(1, 0, 9), read(1, 1, 2), read(0, 3, 4)],
    "of nobody": [write(1, 0, 1), read(7, 0, 9)],
    "lost, done, and undone": [write(1, 0, None), read(1, 1, 2), read(0, 3, 4)],
    "seen in two orders": [
        *(write(1, 0, 9), write(2, 0, 9)),
        *(read(1, 10, 11), read(2, 12, 13)),
    ],
}


@pytest.mark.parametrize("name", RIGHT)
def test_what_one_order_explains(name: str) -> None:
    assert explained(RIGHT[name], 0, step)


@pytest.mark.parametrize("name", WRONG)
def test_what_no_order_explains(name: str) -> None:
    assert not explained(WRONG[name], 0, step)
