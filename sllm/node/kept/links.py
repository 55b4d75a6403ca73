"""How fast pages come from other nodes, as observed; nothing is assumed of a link that is new."""

import math
from dataclasses import dataclass
from typing import Final

_HALF_LIFE_BYTES: Final = 16 << 20
"""After as much has come, what came before counts half."""


@dataclass(slots=True)
class _Link:
    size_bytes: float = 0.0
    seconds: float = 0.0
    counted_to: float = -math.inf
    """Clock's seconds up to which the link's time has been counted."""


class LinkSpeeds:
    """By the node that gives. What comes at the same time shares the link: its time counts once."""

    def __init__(self) -> None:
        self._links: dict[str, _Link] = {}

    def bytes_per_second(self, node_id: str) -> float | None:
        """Of what comes from a node. None: nothing has come yet."""
        link = self._links.get(node_id)
        return link.size_bytes / link.seconds if link and link.seconds else None

    def observe(self, node_id: str, size_bytes: int, began: float, ended: float) -> None:
        """Takes into account what has come.

        Args:
            node_id: from whom.
            size_bytes: nothing is learned of nothing.
            began: clock's seconds.
            ended: clock's seconds; those of successive calls must not fall.
        """
        if not size_bytes or ended <= began:
            return
        link = self._links.setdefault(node_id, _Link())
        faded = 0.5 ** (size_bytes / _HALF_LIFE_BYTES)
        link.size_bytes = faded * link.size_bytes + size_bytes
        link.seconds = faded * link.seconds + max(0.0, ended - max(began, link.counted_to))
        link.counted_to = max(ended, link.counted_to)
