"""Chunks on their way here from other nodes, and which of them come too slowly."""

from collections.abc import Callable, Iterable, Iterator
from typing import Final

import grpc

_SLOW_SECONDS: Final = 2.0
_SILENCE_SECONDS: Final = 3.0
"""A node of which nothing is heard for so long is done without."""
_STALLED_SECONDS: Final = 30.0
"""The same of one that says again and again that it will go on, and does not."""
_LEAST_BYTES: Final = 128 << 10
"""That come in this time, or more."""
_OVERTAKEN: Final = 2.0
"""Times as fast another must be for the rest of a chunk to be had from that one."""


class Flight:
    """A chunk on its way from another node. It can be called back from any thread."""

    def __init__(self, chunk: int, size: int, got: int, now: float) -> None:
        self.chunk = chunk
        self.size = size
        self.got = got
        """Bytes that are there, those from others among them."""
        self.called_back = False
        """Whether it was ended for another node to go on, which is not this one's fault."""
        self._heard_at = now
        self._counted, self._counted_at = got, now
        """When so many were there, and more than a few had come since."""
        self._before = got
        self._began = now
        self._call: grpc.Call | None = None

    def add(self, count: int, now: float) -> None:
        """Bytes have come; none is a sign that there will be more."""
        self.got += count
        self._heard_at = now
        if self.got - self._counted >= _LEAST_BYTES:
            self._counted, self._counted_at = self.got, now

    def rate(self, now: float) -> float:
        """Bytes per second so far; 0: nothing has come."""
        return (self.got - self._before) / max(now - self._began, 1e-3)

    def is_slow(self, now: float) -> bool:
        """Whether it has taken so long that another call is worth it, and will take as long."""
        left = (self.size - self.got) / max(self.rate(now), 1.0)
        return now - self._began > _SLOW_SECONDS and left > _SLOW_SECONDS

    def is_silent(self, now: float) -> bool:
        """Whether nothing is heard of it."""
        return now - self._heard_at > _SILENCE_SECONDS

    def is_stalled(self, now: float) -> bool:
        """Whether hardly anything comes of it, whatever is said."""
        return now - self._counted_at > _STALLED_SECONDS

    def begin(self, call: grpc.Call) -> None:
        """Takes the call, which ends at once if the chunk was called back before."""
        self._call = call
        if self.called_back:
            call.cancel()

    def call_back(self) -> None:
        """Ends the call."""
        self.called_back = True
        if self._call is not None:
            self._call.cancel()


class Flights:
    """All that are on their way, by whom they come from. Belongs to whoever holds its lock."""

    def __init__(self) -> None:
        self._givers: dict[Flight, str] = {}

    def launch(self, flight: Flight, giver: str) -> None:
        """One is on its way."""
        self._givers[flight] = giver

    def land(self, flight: Flight) -> None:
        """It is not any more."""
        del self._givers[flight]

    def call_back(self, giver: str) -> None:
        """Ends all that come from one node."""
        for flight, name in self._givers.items():
            if name == giver:
                flight.call_back()

    def failing(self, now: float) -> Iterator[tuple[str, bool]]:
        """Nodes from which one does not come, and whether they pretend that it does."""
        for flight, name in self._givers.items():
            if flight.is_silent(now) or flight.is_stalled(now):
                yield name, flight.is_stalled(now)

    def overtake(self, rates: Callable[[int, str], Iterable[float]], now: float) -> None:
        """Calls back one that others would give much sooner.

        Args:
            rates: bytes per second of those that would give a chunk in the place of its giver.
            now: the clock's seconds.
        """
        for flight, name in self._givers.items():
            if flight.is_slow(now):
                fastest = max(rates(flight.chunk, name), default=0.0)
                if fastest > _OVERTAKEN * flight.rate(now):
                    flight.call_back()
                    return
