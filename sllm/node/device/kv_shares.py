"""How the instances of a node share its memory for KV caches: by what their requests need."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

Who = TypeVar("Who", bound=Hashable)

HEADROOM: Final = 4
"""An instance wants a part more than its requests have: one by this number."""


@dataclass(frozen=True, slots=True)
class CacheUse:
    """How much of a node's memory for KV caches an engine has, and needs."""

    share_bytes: int
    """What its cache may take."""
    least_bytes: int
    """Of that, what it cannot give up now: requests that run may come to need it, or one
    that is as long as may be."""
    used_bytes: int
    """Of that, what requests refer to."""


@dataclass(frozen=True, slots=True)
class CacheSizes:
    """What an instance's cache has of memory that it shares with others, in bytes."""

    granted: int
    """What it was started with."""
    share: int
    """What it may take now."""
    used: int
    """Of that, what its requests have, as of the last look."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What one instance has to have, wants, and may have, in bytes."""

    least: int
    """What it cannot give up: its requests may come to need it."""
    wanted: int
    """What its requests would use."""
    granted: int
    """What it was started with. It has that before others have more than theirs."""
    most: int
    """At least `granted`."""

    @property
    def own(self) -> int:
        """What it wants of its own."""
        return max(self.least, min(self.wanted, self.granted))

    @property
    def all(self) -> int:
        """What it wants."""
        return max(self.own, min(self.wanted, self.most))


def divide(budget: int, claims: Mapping[Who, Claim], kept: int = 0) -> dict[Who, int]:
    """The share of each, which together are no more than the budget.

    First all have what they cannot give up, then what they want of their own, then what they want
    beyond that, and then what is left of their own. Where there is too little, each gets as much as
    the others who lack something.

    Args:
        budget: of the node.
        claims: of its instances.
        kept: what is left of the budget for whoever starts, before any has more than its own.
    """
    steps = (
        ({who: claim.least for who, claim in claims.items()}, 0),
        ({who: claim.own for who, claim in claims.items()}, 0),
        ({who: claim.all for who, claim in claims.items()}, kept),
        ({who: max(claim.all, claim.granted) for who, claim in claims.items()}, 0),
    )
    shares = dict.fromkeys(claims, 0)
    for levels, left_over in steps:
        lacking = {who: max(0, level - shares[who]) for who, level in levels.items()}
        for who, count in _fill(budget - left_over - sum(shares.values()), lacking).items():
            shares[who] += count
    return shares


def wanted(used: int, least: int, running: int, waiting: int) -> int:
    """What the requests of an instance would use.

    Args:
        used: by those that run.
        least: what one may need that is as long as may be, at least.
        running: how many run.
        waiting: how many wait for room.
    """
    each = used // running if running and used else least
    return used + used // HEADROOM + waiting * each


def _fill(room: int, lacking: Mapping[Who, int]) -> dict[Who, int]:
    """Deals room out evenly: nobody gets more than they lack."""
    dealt: dict[Who, int] = {}
    for who in sorted(lacking, key=lambda one: lacking[one]):
        part = max(0, room) // (len(lacking) - len(dealt))
        dealt[who] = min(lacking[who], part)
        room -= dealt[who]
    return dealt
