"""What a worker and its agent say to each other of pages that are kept."""

from dataclasses import dataclass
from typing import Final

from sllm.node.worker.engine.pages import PageLayout
from sllm.prompt_prefixes import Keeper


@dataclass(frozen=True, slots=True)
class Place:
    """Where a page is in the pool, or is to be written."""

    offset: int
    """Bytes from the start of the pool."""
    digest: bytes = b""
    """Of what is there. Empty: nothing is yet."""
    tier: int = 0
    """That had it; the numbers are those of the protocol."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """To the agent: which pages a prompt needs."""

    number: int
    keys: tuple[bytes, ...]
    seconds_per_token: float | None
    keeper: Keeper | None = None
    """Another node that may have them."""


@dataclass(frozen=True, slots=True)
class Done:
    """To the agent: pages that were found are not read any more, or were never wanted."""

    number: int
    pages: int = 0
    """That were read, the first ones."""
    read_bytes: int = 0
    seconds: float = 0.0
    bad: tuple[int, ...] = ()
    """Which were not what their digests say."""


@dataclass(frozen=True, slots=True)
class Named:
    """To the agent: which pages the beginnings of a prompt fill, kept or not."""

    names: tuple[int, ...]
    """See `sllm.prompt_prefixes`."""
    keys: tuple[bytes, ...]
    """For each, of the last page that it fills."""
    pages: tuple[int, ...]
    """For each, how many it fills."""


@dataclass(frozen=True, slots=True)
class Offered:
    """To the agent: pages that could be kept."""

    number: int
    keys: tuple[bytes, ...]
    seconds_per_token: float | None
    request_id: str = ""
    """That is under way, if the agent has asked for its pages."""


@dataclass(frozen=True, slots=True)
class Written:
    """To the agent: what was written where there was room."""

    number: int
    digests: tuple[bytes, ...] = ()
    """For each place; empty: nothing was."""


@dataclass(frozen=True, slots=True)
class Room:
    """From the agent: where offered pages go."""

    places: tuple[Place, ...]
    indices: tuple[int, ...]
    """For each place, which of the offered pages goes there."""


Message = PageLayout | Named | Wanted | Done | Offered | Written
Answer = tuple[Place, ...] | Room


@dataclass(frozen=True, slots=True)
class KeptTokens:
    """Tokens of a prompt whose pages were kept."""

    by_tier: tuple[tuple[int, int], ...] = ()
    """Of each tier that had some, how many."""

    def up_to(self, count: int) -> "KeptTokens":
        """So many of them at most: some of a prompt may have been computed all the same."""
        tokens: list[tuple[int, int]] = []
        for tier, there in self.by_tier:
            if taken := min(there, count):
                tokens.append((tier, taken))
            count -= taken
        return KeptTokens(tuple(tokens))


NO_TOKENS: Final = KeptTokens()
