"""Tiers: what nodes hold on them, and the links between them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property

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
"""Tiers that checkpoints can be prefetched to, and pinned on."""


@dataclass(frozen=True, slots=True)
class Hold:
    """What keeps a checkpoint on a tier although nothing uses it."""

    hold_id: str
    """Unique on its node."""
    expires_at: float | None = None
    """Seconds since the epoch. None: it is released."""


@dataclass(frozen=True, slots=True)
class Copy:
    """A checkpoint on one tier of a node."""

    digest: str
    tier: Tier
    size_bytes: int
    resident_bytes: int
    """Bytes of it that the tier holds now."""
    sources: tuple[str, ...] = ()
    leased: bool = False
    """Whether an instance, a load under way or a hold keeps it in place."""
    holds: tuple[Hold, ...] = ()
    """Pins and prefetches, which stay when instances end."""
    made_of: str = ""
    """Digest of the checkpoint that it was made ready of. Empty: it is as published."""
    made_for: str = ""
    """What it was made ready for, if it was; see `WeightForm.label`."""
    form: WeightForm | None = None
    """The same in full, as far as it is known."""
    private_bytes: int | None = None
    """Of what was made ready: memory that an instance over it takes for copies of its own, as
    measured on its node. None: it was not."""

    @property
    def serves(self) -> str:
        """Digest of the checkpoint that instances are said to serve over it."""
        return self.made_of or self.digest

    @property
    def whole(self) -> bool:
        """Whether nothing of it is missing."""
        return self.resident_bytes >= self.size_bytes


class Copies(dict[tuple[str, Tier], Copy]):
    """A node's copies by digest and tier. Never changed once it is made: views share it."""

    @classmethod
    def of(cls, copies: Iterable[Copy]) -> "Copies":
        """The copies that have any bytes."""
        return cls({(one.digest, one.tier): one for one in copies if one.resident_bytes})

    @cached_property
    def leased(self) -> tuple[Copy, ...]:
        """The copies that something holds in place."""
        return tuple(copy for copy in self.values() if copy.leased)

    @cached_property
    def holds(self) -> frozenset[tuple[str, str]]:
        """The checkpoints that stay when instances end, each with the id of what holds it."""
        held = (copy for copy in self.leased if copy.holds)
        return frozenset((copy.serves, hold.hold_id) for copy in held for hold in copy.holds)

    def find(self, digest: str, tier: Tier, made_for: str) -> Copy | None:
        """What a tier has of a checkpoint in one form; `made_for` is empty of what is published."""
        return self._made.get((digest, tier, made_for)) if made_for else self.get((digest, tier))

    @cached_property
    def _made(self) -> Mapping[tuple[str, Tier, str], Copy]:
        """What was made ready, by what it was made of, and for what."""
        made = (one for one in self.values() if one.made_of)
        return {(one.made_of, one.tier, one.made_for): one for one in made}

    @cached_property
    def whole(self) -> frozenset[str]:
        """Digests of what is here, with nothing missing."""
        return frozenset(copy.digest for copy in self.values() if copy.whole)

    @cached_property
    def digests(self) -> Mapping[str, str]:
        """The digest to which each source leads on this node."""
        return {source: copy.digest for copy in self.values() for source in copy.sources}


@dataclass(frozen=True, slots=True)
class TierUsage:
    """How full a tier is."""

    capacity_bytes: int
    used_bytes: int
    problem: str = ""
    """Why it takes nothing new at present; empty: it does."""


@dataclass(frozen=True, slots=True)
class Link:
    """What a node has observed of the way from one tier to the next."""

    bytes_per_second: float
    """0: nothing has crossed it yet."""
    queued_bytes: int = 0
    """Bytes of transfers under way or waiting."""
    in_flight_bytes: int = 0
    """Of these, bytes of the chunks that are being moved."""


LinkKey = tuple[Tier, Tier]
