"""Who holds how much of a tier, what is leased, and what goes first when room is needed."""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from sllm.errors import ModelTooLarge, NoCapacity
from sllm.node.records import Tier


@dataclass(slots=True, eq=False)
class Holding:
    """A checkpoint's share of a tier."""

    size: int
    """Bytes."""
    leases: int = 0
    """How many hold it in place."""


class Ledger:
    """The accounts of one tier. Loads reserve room before bytes move, so none is counted twice.

    Belongs to one thread. What is evicted here must be given up by the caller before it awaits
    anything.
    """

    def __init__(self, tier: Tier, capacity: int) -> None:
        self.tier = tier
        self.capacity = capacity
        """Bytes."""
        self.reserved = 0
        """Bytes promised to loads under way."""
        self._holdings: OrderedDict[str, Holding] = OrderedDict()

    @property
    def used(self) -> int:
        """Bytes held and reserved."""
        return self.reserved + sum(holding.size for holding in self._holdings.values())

    def add(self, digest: str, size: int) -> Holding:
        """Enters a checkpoint as the one used last."""
        holding = self._holdings[digest] = Holding(size)
        return holding

    def touch(self, digest: str) -> None:
        """Makes a checkpoint the one used last."""
        self._holdings.move_to_end(digest)

    def remove(self, digest: str) -> None:
        """Strikes a checkpoint out, leased or not."""
        del self._holdings[digest]

    def reserve(self, size: int) -> tuple[str, ...]:
        """Reserves `size` bytes, at the expense of idle checkpoints, least recently used first.

        Returns:
            The checkpoints that had to go; they are struck out already.

        Raises:
            ModelTooLarge: the tier could not hold it even if it were empty.
            NoCapacity: too much is leased or reserved now; nothing was evicted.
        """
        self._check_possible(size)
        victims = []
        for digest in self._idle():
            if self.used + size <= self.capacity:
                break
            self.remove(digest)
            victims.append(digest)
        self.reserved += size
        return tuple(victims)

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
        evictable = sum(self._holdings[digest].size for digest in self._idle())
        if self.used - evictable + size > self.capacity:
            raise NoCapacity(
                f"the checkpoint takes {size} bytes; of the {self.capacity} of the "
                f"{self.tier.name} tier {self.capacity - self.used} are free, {evictable} can be "
                f"evicted and {self.used - evictable} are leased or being loaded"
            )

    def _idle(self) -> list[str]:
        return [digest for digest, holding in self._holdings.items() if not holding.leases]

    def check_integrity(self, digests: Iterable[str]) -> None:
        """Raises AssertionError unless exactly `digests` are held, within the capacity."""
        assert set(digests) == set(self._holdings), "the ledger and the tier differ"
        assert all(holding.leases >= 0 for holding in self._holdings.values()), "leases below 0"
        assert 0 <= self.reserved <= self.used <= self.capacity, "more in use than there is"
