"""Checkpoints that stay on a tier of a node because an operator says so."""

from collections.abc import Iterable
from dataclasses import dataclass

from sllm import errors
from sllm.control.cluster.nodes import NodeView
from sllm.control.cluster.tiers import Tier

PREFIX = "pin/"
"""Of the ids of holds that are pins."""


@dataclass(frozen=True, slots=True)
class Place:
    """A tier of a node, for one deployment's checkpoint; it is pinned there once or not at all."""

    deployment: str
    tier: Tier
    node_id: str

    @property
    def hold_id(self) -> str:
        """What the pin is called on its node."""
        return f"{PREFIX}{self.deployment}/{self.tier.name}"

    def takes(self, tier: Tier) -> bool:
        """Whether it takes bytes of a tier of its node: what is in memory is on SSD as well."""
        return tier in (Tier.SSD, self.tier)


@dataclass(frozen=True, slots=True)
class Pin:
    """A pin as it is stored."""

    place: Place
    expires_at: float | None = None
    """Seconds since the epoch. None: it ends when it is told to, or with its deployment."""

    def remaining(self, now: float) -> float | None:
        """Seconds that it still lasts; `now` is counted as `expires_at` is."""
        return None if self.expires_at is None else self.expires_at - now

    def is_over(self, now: float) -> bool:
        """Whether its time is up."""
        return self.expires_at is not None and self.expires_at <= now


def check_room(node: NodeView, tier: Tier, size_bytes: int, pinned: Iterable[int] = ()) -> None:
    """Refuses what a tier could not hold, `pinned` bytes of other checkpoints aside.

    Raises:
        errors.ModelTooLarge: Not even the empty tier could; with the numbers.
        errors.NoCapacity: What is pinned there leaves too little; with the numbers.
    """
    usage = node.facts.tiers.get(tier)
    capacity, taken = usage.capacity_bytes if usage else 0, sum(pinned)
    where = f"the {tier.name} tier of {node.node_id}"
    if size_bytes > capacity:
        raise errors.ModelTooLarge(
            f"the checkpoint takes {size_bytes} bytes, and {where} has {capacity} in all"
        )
    if size_bytes + taken > capacity:
        raise errors.NoCapacity(
            f"the checkpoint takes {size_bytes} bytes; of the {capacity} of {where} {taken} are "
            "pinned: unpin some, or take another node"
        )
