"""By which way a generation's KV cache comes to where it goes on: what is sooner. A pure core."""

from dataclasses import dataclass
from enum import IntEnum


class Way(IntEnum):
    """How it comes; the numbers are those of the protocol."""

    TOKENS = 1
    """All of it is computed."""
    PAGES = 2
    """Whole pages come from the source, and the rest is computed."""


@dataclass(frozen=True, slots=True)
class Lack:
    """What a destination lacks of a KV cache."""

    computed: int
    """Tokens that it has, the first ones."""
    total: int
    """Tokens; of the last one no cache has anything yet."""
    page_tokens: int
    page_bytes: int

    @property
    def first_page(self) -> int:
        """Index of the first page that it does not have whole."""
        return self.computed // self.page_tokens

    @property
    def pages(self) -> int:
        """Whole pages that it lacks, and that the source has."""
        return max(0, (self.total - 1) // self.page_tokens - self.first_page)

    @property
    def size_bytes(self) -> int:
        """Of those pages."""
        return self.pages * self.page_bytes

    @property
    def tokens(self) -> int:
        """Those that are computed where no page comes."""
        return self.total - self.computed

    @property
    def rest(self) -> int:
        """Those that are computed where all pages come."""
        return self.total - (self.first_page + self.pages) * self.page_tokens


@dataclass(frozen=True, slots=True)
class Costs:
    """What was measured."""

    seconds_per_token: float | None
    """Of computing a prompt at the destination. None: not known."""
    link_bytes_per_second: float | None
    """From the source. None: not known."""
    memory_bytes_per_second: float
    """Between a cache and what is kept, which each page crosses at both ends."""
    asking_seconds: float
    """Of pages, whatever their number."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """Seconds that each way takes. None: not known, or not to be had."""

    by_tokens: float | None
    by_pages: float | None

    @property
    def way(self) -> Way:
        """The sooner one. Tokens, where anything is unknown: they need nobody's help."""
        if self.by_tokens is None or self.by_pages is None:
            return Way.TOKENS
        return Way.PAGES if self.by_pages < self.by_tokens else Way.TOKENS


def estimate(lack: Lack, costs: Costs) -> Estimate:
    """What both ways take."""
    pace, link = costs.seconds_per_token, costs.link_bytes_per_second
    if pace is None:
        return Estimate(None, None)
    by_tokens = lack.tokens * pace
    if link is None or not lack.pages:
        return Estimate(by_tokens, None)
    per_byte = 1 / link + 2 / costs.memory_bytes_per_second
    return Estimate(by_tokens, costs.asking_seconds + lack.size_bytes * per_byte + lack.rest * pace)
