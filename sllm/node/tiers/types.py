"""The tiers, and what a node says of each: what is there, how full it is, how fast to the next."""

from dataclasses import dataclass
from enum import IntEnum

from sllm.checkpoint.format.form import WeightForm


class Tier(IntEnum):
    """A place on or behind a node that holds chunks; the numbers are those of the protocol."""

    REMOTE = 1
    SSD = 2
    DRAM = 3
    DEVICE = 4
    PEER = 5
    """Other nodes: between the source and SSD, whatever its number."""


STORED_ON = (Tier.SSD, Tier.DRAM)
"""Tiers that checkpoints can be promoted to, and held on."""
EVICTED_FROM = (*STORED_ON, Tier.DEVICE)
"""Tiers whose room can be asked for."""


@dataclass(frozen=True, slots=True)
class Copy:
    """A checkpoint on a tier."""

    digest: str
    tier: Tier
    size_bytes: int
    """Bytes of its partitions."""
    resident_bytes: int
    """Those that the tier holds now; fewer while it is being loaded."""
    sources: tuple[str, ...]
    """URLs that are known to lead to it."""
    leased: bool
    """Whether it is in use or being loaded, and so cannot be evicted."""
    made_of: str = ""
    """Digest of the checkpoint that it was made ready of. Empty: it is as published."""
    made_for: str = ""
    """What it was made ready for, if it was; see `WeightForm.label`."""
    form: WeightForm | None = None
    """The same in full, as far as it is known."""


@dataclass(frozen=True, slots=True)
class TierUsage:
    """How full a tier is."""

    tier: Tier
    capacity_bytes: int
    used_bytes: int
    """Reservations for loads under way included."""
    problem: str = ""
    """Why it takes nothing new at present; empty: it does."""


@dataclass(frozen=True, slots=True)
class Link:
    """What was observed of the way from one tier to the next."""

    from_tier: Tier
    to_tier: Tier
    bytes_per_second: float
    queued_bytes: int
    """Bytes of transfers under way or waiting."""
    in_flight_bytes: int
    """Of these, bytes of the chunks that are being moved at this moment."""
