"""Which of the fellows that are getting a checkpoint gets which chunk for all: a pure core."""

from collections.abc import Collection

import xxhash


class Shares:
    """Who owns a chunk follows from who they are, so that nobody has to be asked.

    The highest digest says so: whoever joins takes chunks over, and none changes between the
    others, who may hear of it at different times. Whoever has begun a chunk owns it from then on,
    and so does whoever it was left to, for as long as it is there.
    """

    def __init__(self, own: str) -> None:
        """Begins with nobody but this node."""
        self._own = own
        self._names = {own}
        self._claims: dict[int, str] = {}
        """Who owns chunks that were begun, or left to somebody."""
        self._owners: dict[int, str] = {}
        """Who owns others, as far as that was asked for since the last one came or went."""

    @property
    def names(self) -> Collection[str]:
        """Of all that share, this node among them."""
        return self._names

    def join(self, name: str) -> None:
        """Another one shares."""
        self._names.add(name)
        self._owners.clear()

    def leave(self, name: str) -> None:
        """One does not any more."""
        self._names.discard(name)
        self._owners.clear()

    def claim(self, chunk: int, name: str) -> None:
        """A chunk is somebody's from now on."""
        self._claims[chunk] = name

    def owner(self, chunk: int) -> str:
        """Who gets a chunk for all."""
        claimed = self._claims.get(chunk)
        if claimed in self._names:
            return claimed
        owner = self._owners.get(chunk)
        if owner is None:
            owner = self._owners[chunk] = _highest(chunk, self._names)
        return owner

    def is_own(self, chunk: int) -> bool:
        """Whether this node gets it."""
        return self.owner(chunk) == self._own

    def is_next(self, chunk: int, after: str) -> bool:
        """Whether somebody owns it, and this node would if that one left."""
        others = self._names - {after}
        return self.owner(chunk) == after and _highest(chunk, others) == self._own


def weight(chunk: int, name: str) -> int:
    """A number that nobody chooses, and all find the same."""
    return xxhash.xxh3_64_intdigest(f"{chunk}/{name}".encode())


def _highest(chunk: int, names: Collection[str]) -> str:
    return max(names, key=lambda name: weight(chunk, name))
