"""Time of a simulation: what happens when, in order."""

import heapq
from collections.abc import Callable

from sllm.clock import ManualClock

Action = Callable[[], None]


class Events:
    """Actions and their moments; those of one moment happen in the order in which they were set."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self._heap: list[tuple[float, int, Action]] = []
        self._count = 0

    def at(self, moment: float, action: Action) -> None:
        """Has `action` happen at a moment of the clock, which must not have passed."""
        assert moment >= self.clock.now()
        self._count += 1
        heapq.heappush(self._heap, (moment, self._count, action))

    def run(self, after_each_moment: Action) -> None:
        """Lets everything happen; calls `after_each_moment` whenever time is about to move on."""
        while self._heap:
            moment = self._heap[0][0]
            self.clock.advance(moment - self.clock.now())
            while self._heap and self._heap[0][0] <= moment:
                heapq.heappop(self._heap)[2]()
            after_each_moment()
