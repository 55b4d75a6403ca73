"""Zones: parts of a cluster that are apart, and what the way between them costs a request.

A request has its first token so much later for each second of the way; what follows comes in a
stream, one token behind the other, so that nothing else is lost.
"""

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

from sllm import bounds
from sllm.errors import InvalidArgument

UNLINKED_SECONDS: Final = 0.1
"""What the way between zones costs between which no links are known."""
MAX_SECONDS: Final = 60.0
"""Of one link, at most."""


@dataclass(frozen=True)
class Zones:
    """The links between zones. Where zones are not known, nothing is far."""

    links: Mapping[frozenset[str], float] = field(default_factory=dict)
    """Seconds that the way between two zones costs, either way."""
    _ways: dict[str, Mapping[str, float]] = field(default_factory=dict, repr=False, compare=False)
    """The shortest ways from zones that were asked for: from all of many, it would take long."""

    def seconds(self, origin: str, zone: str) -> float:
        """What the shortest way from one zone to another costs; nothing where one is not known."""
        if not origin or not zone or origin == zone:
            return 0.0
        if origin not in self._ways:
            self._ways[origin] = self._ways_from(origin)
        return self._ways[origin].get(zone, UNLINKED_SECONDS)

    def _ways_from(self, origin: str) -> Mapping[str, float]:
        """The shortest ways to all zones that it is linked with, over others as well (Dijkstra)."""
        found: dict[str, float] = {}
        ahead = [(0.0, origin)]
        while ahead:
            cost, zone = heapq.heappop(ahead)
            if zone in found:
                continue
            found[zone] = cost
            for other, way in self._beside.get(zone, ()):
                heapq.heappush(ahead, (cost + way, other))
        return found

    @cached_property
    def _beside(self) -> Mapping[str, list[tuple[str, float]]]:
        beside: dict[str, list[tuple[str, float]]] = {}
        for pair, cost in self.links.items():
            for zone in pair:
                beside.setdefault(zone, []).extend((other, cost) for other in pair - {zone})
        return beside


NOWHERE: Final = Zones()
"""A cluster whose zones, if it has any, are not linked."""


@dataclass(frozen=True)
class Origins:
    """Where requests come from, and so how far they have it to each node."""

    zones: Zones = NOWHERE
    shares: Mapping[str, float] = field(default_factory=dict)
    """Of the requests, by the zone that they come from; 1 together, or none."""
    _known: dict[str, float] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, zones: Zones, origins: Iterable[str]) -> "Origins":
        """Of requests, one zone for each. Those that do not say come from everywhere."""
        named = [origin for origin in origins if origin]
        return cls(zones, {one: named.count(one) / len(named) for one in dict.fromkeys(named)})

    @property
    def anywhere(self) -> bool:
        """Whether no node is farther than another."""
        return not self.shares

    def seconds(self, zone: str) -> float:
        """What the way to a node in `zone` costs them, on average."""
        if zone not in self._known:
            ways = (share * self.zones.seconds(one, zone) for one, share in self.shares.items())
            self._known[zone] = sum(ways)
        return self._known[zone]


ANYWHERE: Final = Origins()
"""Of requests that do not say."""


def zones_of(links: Iterable[tuple[str, str, float]]) -> Zones:
    """The zones that are linked so: two names, and seconds.

    Raises:
        InvalidArgument: A link is none, or is there twice.
    """
    found: dict[frozenset[str], float] = {}
    for a, b, seconds in links:
        pair = frozenset((bounds.zone(a, "a zone"), bounds.zone(b, "a zone")))
        if len(pair) != 2 or "" in pair:
            raise InvalidArgument(f"a link is between two zones, not {a!r} and {b!r}")
        if not 0 <= seconds <= MAX_SECONDS:
            raise InvalidArgument(
                f"the link of {a} and {b} must cost from 0 to {MAX_SECONDS:g} s, not {seconds:g} s"
            )
        if pair in found:
            raise InvalidArgument(f"the link of {a} and {b} is there twice")
        found[pair] = seconds
    return Zones(found)
