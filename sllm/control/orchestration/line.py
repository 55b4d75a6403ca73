"""Deployments that want instances, in the order of their turns."""

import heapq
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple


class Turn(NamedTuple):
    """Whose turn it is: the least first."""

    unasked: bool
    """Whether no request waits for it."""
    share: float
    """What its tenant has of its share."""
    turn: float
    """Of the request that waits, in the clock's seconds."""
    name: str


class Line:
    """Gives names in the order of their turns, which may come later while it is being read.

    line = Line(turn_of, ["llama", "opt"])
    for name in line:
        if start(name):
            line.put(name)  # wants another one
    """

    def __init__(self, turn_of: Callable[[str], Turn], names: Iterable[str]) -> None:
        self._turn_of = turn_of
        self._turns = [turn_of(name) for name in names]
        heapq.heapify(self._turns)

    def put(self, name: str) -> None:
        """Puts one in, at its turn as it is now."""
        heapq.heappush(self._turns, self._turn_of(name))

    def __iter__(self) -> Iterator[str]:
        while self._turns:
            name = heapq.heappop(self._turns).name
            turn = self._turn_of(name)
            if self._turns and self._turns[0] < turn:  # it has come later since it was put in
                heapq.heappush(self._turns, turn)
            else:
                yield name
