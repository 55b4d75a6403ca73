"""What is asked of kept pages, and what is given."""

from dataclasses import dataclass, field, replace

from sllm.node.kept.segment import Segment
from sllm.node.tiers.ledger import Holding
from sllm.node.tiers.types import Tier


@dataclass(frozen=True, slots=True)
class KeptBudget:
    """How much of the tiers they may have. 0: nothing."""

    dram_bytes: int = 0
    ssd_bytes: int = 0
    int8: bool = False
    """Whether pages are kept with eight bits a number, which is not exact."""


NOTHING_KEPT = KeptBudget()


@dataclass(frozen=True, slots=True)
class PageWish:
    """What is asked for a prompt."""

    keys: tuple[bytes, ...]
    """Of the pages that are wanted, each after the one before."""
    page_tokens: int
    seconds_per_token: float | None
    """What computing a prompt takes there. None: not known."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a page is, or is to be written."""

    key: bytes
    chunk: int
    offset: int
    """Bytes from the start of the chunk."""
    tier: Tier
    """That had it when it was asked for."""
    digest: bytes = b""
    """Of what is there. Empty: nothing is yet."""


@dataclass(slots=True, eq=False)
class PageLease:
    """Pages that stay where they are until it is given back."""

    places: tuple[Place, ...] = ()
    segments: tuple[Segment, ...] = ()
    """For each place, its segment."""
    holdings: list[Holding] = field(default_factory=list)

    def came_from_peer(self, first: int) -> None:
        """Notes that pages from this one on were not here when they were asked for."""
        self.places = tuple(
            place if index < first else replace(place, tier=Tier.PEER)
            for index, place in enumerate(self.places)
        )

    def give_back(self) -> None:
        """Ends it. A second call does nothing."""
        for holding in self.holdings:
            holding.leases -= 1
        self.holdings.clear()
