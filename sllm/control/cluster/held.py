"""Checkpoints that nodes have all of: others may have them from there, and how far that is."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from sllm.control.cluster.zones import NOWHERE, Zones


@dataclass(frozen=True, slots=True)
class Held:
    """What the nodes of a fleet hold together."""

    by_digest: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """The zones in which there is all of a checkpoint."""
    zones: Zones = NOWHERE

    @classmethod
    def of(cls, pairs: Iterable[tuple[str, str]], zones: Zones) -> "Held":
        """Of digests and zones in which they are held."""
        found: dict[str, set[str]] = {}
        for digest, zone in pairs:
            found.setdefault(digest, set()).add(zone)
        return cls({digest: frozenset(where) for digest, where in found.items()}, zones)

    def __contains__(self, digest: str) -> bool:
        """Whether any node has all of it."""
        return digest in self.by_digest

    def seconds(self, digest: str, zone: str) -> float:
        """What the way from the nearest costs that is held; its bytes come in a stream behind it.

        A node has it from there alone; see `multicast`.
        """
        where = self.by_digest.get(digest, ())
        return min((self.zones.seconds(zone, one) for one in where), default=0.0)


NOTHING_HELD = Held()
