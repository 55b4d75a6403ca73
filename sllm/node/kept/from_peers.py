"""Whether pages of a prompt that another node keeps are fetched, or computed: what is sooner."""

from dataclasses import dataclass
from typing import Final

from sllm.node.kept.fetching import PageFetcher, PagesAsked
from sllm.node.kept.kept_pages import KeptPages
from sllm.node.kept.records import PageWish
from sllm.node.peers.types import Peer
from sllm.prompt_prefixes import Keeper

_SHARE_OF_NEW_LINK: Final = 0.25
"""Of the time that computing would take: for pages from a node from which none has come yet."""
_SHARE: Final = 0.5
"""The same, where it is known how fast they come: they may come more slowly today."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What it would take to fetch pages."""

    size_bytes: int
    computing_seconds: float
    """Of computing them instead."""
    link_bytes_per_second: float | None
    """None: nobody knows."""
    pool_bytes_per_second: float
    """From the pool into a worker's cache."""

    @property
    def patience(self) -> float:
        """Seconds that fetching may take before it is given up. 0: computing is sooner."""
        into_cache = self.size_bytes / self.pool_bytes_per_second
        if self.link_bytes_per_second is None:
            return max(0.0, _SHARE_OF_NEW_LINK * self.computing_seconds - into_cache)
        expected = self.size_bytes / self.link_bytes_per_second
        most = _SHARE * self.computing_seconds - into_cache
        return most if expected < most else 0.0


class PagesFromPeers:
    """Belongs to the event loop."""

    def __init__(self, kept: KeptPages, fetcher: PageFetcher) -> None:
        self.kept = kept
        """Those of this node."""
        self._fetcher = fetcher

    async def fetch(self, keeper: Keeper, wish: PageWish, space: str, page_bytes: int) -> int:
        """Has missing pages of a prompt be kept here; gives how many of the first were before.

        Raises nothing unless the caller is cancelled: what has not come is computed.
        """
        here = self.kept.count(wish.keys)
        missing = wish.keys[here:]
        if missing and self._fetcher.is_on and self._fetcher.gives(keeper.node_id):
            per_token = wish.seconds_per_token or self.kept.pace(space)
            computing = keeper.saved_seconds
            if per_token is not None:
                computing = len(missing) * wish.page_tokens * per_token
            offer = Offer(
                len(missing) * page_bytes,
                computing,
                self._fetcher.links.bytes_per_second(keeper.node_id),
                self.kept.bytes_per_second,
            )
            if patience := offer.patience:
                peer = Peer(keeper.node_id, keeper.address)
                asked = PagesAsked(peer, space, page_bytes, missing, per_token)
                await self._fetcher.fetch(asked, patience)
        return here
