"""Where models come from that an SSD lacks: a store that all nodes share, or one another."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

Holds = Callable[[str, float], bool]
"""Whether a node has all of a model, by its digest, at a moment of the clock."""


@dataclass(slots=True)
class Afar:
    """All that is beyond a node. Sources give as much as whoever asks can take."""

    store_bytes_per_second: float = math.inf
    """Of the store, to all nodes together."""
    peers: bool = False
    """Whether nodes give one another what they hold, and what they are getting, as it comes."""
    _nodes: dict[str, Holds] = field(default_factory=dict)
    _store_free_at: float = 0.0
    _coming: dict[str, float] = field(default_factory=dict)
    """By digest, when the last one that is getting it will have it."""
    from_store_bytes: int = 0
    """That the store has given."""

    def join(self, nodes: Mapping[str, Holds]) -> None:
        """Takes in the nodes that there are."""
        self._nodes |= nodes

    def complete_at(self, node_id: str, digest: str, size: int, begin: float, rate: float) -> float:
        """When a node has all of a model; it takes `rate` bytes per second from `begin` on.

        Among peers whoever gets it at the same time gives on what has come: so it leaves the store
        once, and the last one has it when the others do.
        """
        soonest = begin + size / rate
        if self.peers and self._is_held(node_id, digest, begin):
            return soonest
        coming = self._coming.get(digest, 0.0)
        if self.peers and coming > begin:
            return max(soonest, coming)
        self._store_free_at = max(begin, self._store_free_at) + size / self.store_bytes_per_second
        self.from_store_bytes += size
        self._coming[digest] = max(soonest, self._store_free_at)
        return self._coming[digest]

    def _is_held(self, node_id: str, digest: str, now: float) -> bool:
        others: Iterable[Holds] = (one for key, one in self._nodes.items() if key != node_id)
        return any(holds(digest, now) for holds in others)
