"""Who holds how much of a tier, what is leased, and what room loads were promised."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from sllm.clock import Clock, MonotonicClock
from sllm.decay import Decaying
from sllm.errors import ModelTooLarge, NoCapacity
from sllm.node.tiers.eviction import Rank, choose_victims
from sllm.node.tiers.types import Tier

HALF_LIFE_SECONDS = 600.0
"""A use counts half as much after this time."""


@dataclass(slots=True, eq=False)
class Holding:
    """A checkpoint's share of a tier, or that of pages of KV caches that are kept."""

    size: int
    """Bytes."""
    uses: Decaying
    """How often it was brought up or found here of late."""
    leases: int = 0
    """How many hold it in place."""
    yielding: int = 0
    """How many of these are given up as soon as somebody needs the room."""
    wanted_until: float = math.inf
    """Clock's seconds from which on it goes before those that are wanted."""
    pins: int = 0
    """How many of these are there although nothing uses it."""
    recomputable: bool = False
    """Whether it is no checkpoint but what a model has computed: it goes before all of those."""

    @property
    def stays(self) -> bool:
        """Whether anybody holds it in place who would not give it up."""
        return self.leases > self.yielding


class Ledger:
    """The accounts of one tier. Loads reserve room before bytes move, so none is counted twice.

    Belongs to one thread. What is evicted here must be given up by the caller before it awaits
    anything.
    """

    def __init__(self, tier: Tier, capacity: int, clock: Clock | None = None) -> None:
        self.tier = tier
        self.capacity = capacity
        """Bytes."""
        self.reserved = 0
        """Bytes promised to loads under way."""
        self.reload_seconds: Callable[[str, int], float] = lambda _, size: float(size)
        """What bringing a checkpoint of so many bytes here again would take, from the tiers below
        as they are now. Until it is set, every byte takes as long as any other."""
        self.goes_last: Callable[[str], bool] = lambda _: False
        """Whether a checkpoint goes only when no other one can."""
        self._clock = clock or MonotonicClock()
        self._holdings: dict[str, Holding] = {}

    @property
    def used(self) -> int:
        """Bytes held and reserved."""
        return self.reserved + sum(holding.size for holding in self._holdings.values())

    @property
    def recomputable_bytes(self) -> int:
        """Bytes held of what is no checkpoint."""
        return sum(one.size for one in self._holdings.values() if one.recomputable)

    @property
    def free(self) -> int:
        """Bytes for which nothing would have to go."""
        return self.capacity - self.used

    @property
    def idle(self) -> int:
        """Bytes held that nothing leases: they go when room is needed."""
        return sum(self._holdings[digest].size for digest in self._idle())

    def __contains__(self, digest: object) -> bool:
        """Whether it has been entered, and not struck out."""
        return digest in self._holdings

    def add(self, digest: str, size: int, *, recomputable: bool = False) -> Holding:
        """Enters a checkpoint, or what can be computed again, used now."""
        uses = Decaying().plus_one(self._clock.now(), HALF_LIFE_SECONDS)
        holding = self._holdings[digest] = Holding(size, uses, recomputable=recomputable)
        return holding

    def touch(self, digest: str) -> None:
        """Counts a use of a checkpoint."""
        holding = self._holdings[digest]
        holding.uses = holding.uses.plus_one(self._clock.now(), HALF_LIFE_SECONDS)
        holding.wanted_until = math.inf

    def wanted_for(self, digest: str, seconds: float) -> None:
        """Has a checkpoint go before others after this time, unless it is used again.

        One that is not here is not wanted any less.
        """
        if holding := self._holdings.get(digest):
            holding.wanted_until = self._clock.now() + seconds

    def touch_and_hold(self, digest: str) -> Holding:
        """Counts a use, and a lease, which the caller gives back."""
        self.touch(digest)
        holding = self._holdings[digest]
        holding.leases += 1
        return holding

    def remove(self, digest: str) -> None:
        """Strikes a checkpoint out, leased or not."""
        del self._holdings[digest]

    def reserve(self, size: int) -> tuple[str, ...]:
        """Reserves `size` bytes, at the expense of the idle checkpoints that are missed least.

        Returns:
            The checkpoints that had to go; they are struck out already, and their bytes are the
            caller's to free.

        Raises:
            ModelTooLarge: the tier could not hold it even if it were empty.
            NoCapacity: too much is leased or reserved now; nothing was evicted.
        """
        self._check_possible(size)
        idle = {digest: self._holdings[digest].size for digest in self._idle()}
        victims = choose_victims(idle, self.used + size - self.capacity, self._rank)
        for digest in victims:
            self.remove(digest)
        self.reserved += size
        return victims

    def _rank(self, digest: str) -> Rank:
        """Sorts by who goes first."""
        holding = self._holdings[digest]
        wanted = holding.wanted_until > self._clock.now()
        return self.goes_last(digest), not holding.recomputable, wanted, self._worth(digest)

    def _worth(self, digest: str) -> float:
        """How much a checkpoint would be missed, for each byte."""
        holding = self._holdings[digest]
        uses = holding.uses.value(self._clock.now(), HALF_LIFE_SECONDS)
        return self.reload_seconds(digest, holding.size) * uses / max(1, holding.size)

    @property
    def least_missed(self) -> str | None:
        """What would go first; None: nothing is idle."""
        return min(self._idle(), key=self._rank, default=None)

    @property
    def least_missed_recomputable(self) -> str | None:
        """The same of what is no checkpoint."""
        idle = (digest for digest in self._idle() if self._holdings[digest].recomputable)
        return min(idle, key=self._worth, default=None)

    def unreserve(self, size: int) -> None:
        """Gives a reservation back."""
        self.reserved -= size

    def shrink_to_capacity(self) -> tuple[str, ...]:
        """Evicts until the capacity, which may have been lowered, is kept; says what had to go."""
        return self.reserve(0)

    def _check_possible(self, size: int) -> None:
        if size > self.capacity:
            raise ModelTooLarge(
                f"the checkpoint takes {size} bytes, and the {self.tier.name} tier of this node "
                f"has {self.capacity} in all"
            )
        evictable = self.idle
        if self.used - evictable + size > self.capacity:
            raise NoCapacity(
                f"the checkpoint takes {size} bytes; of the {self.capacity} of the "
                f"{self.tier.name} tier {self.capacity - self.used} are free, {evictable} can be "
                f"evicted and {self.used - evictable} are leased or being loaded"
            )

    def _idle(self) -> list[str]:
        return [digest for digest, holding in self._holdings.items() if not holding.leases]

    def check_integrity(self, digests: Iterable[str]) -> None:
        """Raises AssertionError unless exactly the checkpoints `digests` are held, and what fits.

        What is recomputable is for those to check who keep it.
        """
        held = {digest for digest, one in self._holdings.items() if not one.recomputable}
        assert set(digests) == held, "the ledger and the tier differ"
        assert all(holding.leases >= 0 for holding in self._holdings.values()), "leases below 0"
        assert 0 <= self.reserved <= self.used <= self.capacity, "more in use than there is"
