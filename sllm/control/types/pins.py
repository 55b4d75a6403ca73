"""Checkpoints that stay on a tier of a node because an operator says so."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from sllm import errors
from sllm.control.cluster.needs import Checkpoint
from sllm.control.cluster.nodes import NodeView
from sllm.control.cluster.tiers import Tier
from sllm.control.tenants.names import tenant_of

PREFIX: Final = "pin/"
"""Of the ids of holds that are pins."""
_PREFETCH: Final = "prefetch/"
_PARTS: Final = 3
"""Of an id: what it is, whose, and which one."""


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


@dataclass(frozen=True, slots=True)
class Keep:
    """A checkpoint that is to be held on a tier of a node for a tenant."""

    tenant: str
    checkpoint: Checkpoint
    tier: Tier
    node_id: str

    @property
    def tiers(self) -> tuple[Tier, ...]:
        """The tiers that it takes bytes of: what is in memory is on SSD as well."""
        return (Tier.SSD,) if self.tier is Tier.SSD else (Tier.SSD, self.tier)


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


def prefetch_id(owner: str, key: str) -> str:
    """What a prefetch is called on its node.

    Args:
        owner: The whole name of anything of the tenant's. Empty: it is nobody's.
        key: Unique among prefetches; a caller may have chosen it, of any length.
    """
    return f"{_PREFETCH}{owner}/{hashlib.sha256(key.encode()).hexdigest()[:32]}"


def tenant_of_hold(hold_id: str) -> str | None:
    """The tenant for whom a node holds something. None: nobody, or nobody knows."""
    parts = hold_id.split("/")
    return tenant_of(parts[1]) if len(parts) == _PARTS and parts[1] else None


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
