"""Pages that other nodes have kept, brought here: they are kept here from then on.

    fetcher.fetch(PagesAsked(giver, space, page_bytes, keys, seconds_per_token), seconds=2.0)

Pages are only ever an improvement: whatever goes wrong with them, whoever needs them computes what
has not come.
"""

import asyncio
import math
from dataclasses import dataclass
from functools import partial
from typing import Final

from sllm.clock import Clock
from sllm.errors import ShuttingDown
from sllm.node.kept.kept_pages import KeptPages
from sllm.node.kept.links import LinkSpeeds
from sllm.node.kept.records import PageLease
from sllm.node.peers.pages import PageCall
from sllm.node.peers.types import Network, Peer
from sllm.node.tiers.pool import Pool
from sllm.node.transfers.loads import Threads

_CALLS: Final = 4
"""At a time; more wait for their turns."""
_SILENT_SECONDS: Final = 15.0
"""For which nobody waits for pages of prompts from a node that has given none."""


@dataclass(frozen=True, slots=True)
class PagesAsked:
    """What another node is asked for."""

    giver: Peer
    space: str
    """See `Segment`."""
    page_bytes: int
    keys: tuple[bytes, ...]
    """Each page after the one before."""
    seconds_per_token: float | None
    """What computing a prompt takes here. None: not known."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """What has come of it."""

    pages: int
    """Of those that were asked for, the first ones, that are here now."""
    size_bytes: int = 0
    """That have come; some may have been here before."""
    seconds: float = 0.0
    """In which they came."""


class PageFetcher:
    """Belongs to the event loop; calls are made in threads."""

    def __init__(
        self, kept: KeptPages, pool: Pool, network: Network | None, links: LinkSpeeds, clock: Clock
    ) -> None:
        """Asks nobody yet.

        Args:
            kept: takes them.
            pool: where it keeps them.
            network: leads to other nodes. None: nothing is had from them.
            links: learns from what comes.
            clock: measures that.
        """
        self.links = links
        """How fast bytes come from each node."""
        self._kept = kept
        self._pool = pool
        self._network = network if kept.is_on else None
        self._clock = clock
        self._threads = Threads(_CALLS)
        self._calls: set[PageCall] = set()
        self._silent: dict[str, float] = {}
        """Until when, in the clock's seconds, nodes are taken to give nothing."""

    def gives(self, node_id: str) -> bool:
        """Whether a node may have anything to give: one that was asked in vain has not, a while."""
        return self._silent.get(node_id, -math.inf) <= self._clock.now()

    @property
    def is_on(self) -> bool:
        """Whether any page may come from another node."""
        return self._network is not None

    @property
    def here(self) -> Peer | None:
        """This node, as others have its pages. None: they have none of it, or it is not heard."""
        if self._network is None or not self._network.address:
            return None
        return Peer(self._network.node_id, self._network.address)

    async def fetch(self, asked: PagesAsked, seconds: float) -> Fetched:
        """Brings those that are not here, as far as there is room and they come in time.

        It raises nothing unless the caller is cancelled.

        Args:
            asked: which, and of whom.
            seconds: what that may take.
        """
        if self._network is None:
            return Fetched(0)
        lease = self._kept.make_room(
            asked.space, asked.page_bytes, asked.keys, asked.seconds_per_token
        )
        began, digests = self._clock.now(), list[bytes]()
        try:
            if lease.places:
                digests = await self._call(self._network, asked, lease, seconds)
        finally:
            self._kept.keep(lease, digests)
        ended, size = self._clock.now(), len(digests) * asked.page_bytes
        self.links.observe(asked.giver.node_id, size, began, ended)
        if digests:
            self._silent.pop(asked.giver.node_id, None)
        elif lease.places:
            self._silent[asked.giver.node_id] = ended + _SILENT_SECONDS
        return Fetched(self._kept.count(asked.keys), size, ended - began)

    async def _call(
        self, network: Network, asked: PagesAsked, lease: PageLease, seconds: float
    ) -> list[bytes]:
        size = asked.page_bytes
        call = PageCall(network, asked.giver, [place.key for place in lease.places], size)
        into = [self._pool.view(one.chunk)[one.offset : one.offset + size] for one in lease.places]
        self._calls.add(call)
        try:
            # A thread writes to what is leased until its call has ended.
            return await self._threads.run_to_end(partial(call.fill, into, seconds), call.end)
        except ShuttingDown:
            return []
        finally:
            self._calls.discard(call)

    async def close(self) -> None:
        """Ends what is under way, and refuses more."""
        self._threads.stop()
        for call in self._calls:
            call.end()
        await asyncio.to_thread(self._threads.close)
