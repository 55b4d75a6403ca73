"""Finds the kept pages of a prompt, and brings those up that are on SSD alone."""

import asyncio
import itertools
from collections.abc import Sequence
from functools import partial

import structlog

from sllm.clock import Clock
from sllm.errors import SllmError
from sllm.node.kept import files
from sllm.node.kept.choice import KeptPage, Rates, worth_reading
from sllm.node.kept.contents import KeptContents
from sllm.node.kept.records import PageLease, PageWish, Place
from sllm.node.kept.segment import Segment
from sllm.node.tiers.types import Tier
from sllm.node.transfers.loads import Threads
from sllm.node.transfers.speeds import Speed

_log = structlog.get_logger()


class Finder:
    """Belongs to the event loop; disk is left to threads."""

    def __init__(
        self,
        contents: KeptContents,
        from_ssd: Speed,
        from_pool: Speed,
        threads: Threads,
        clock: Clock,
    ) -> None:
        self._contents = contents
        self._from_ssd = from_ssd
        self._from_pool = from_pool
        self._threads = threads
        self._clock = clock
        self._reads: dict[str, asyncio.Task[None]] = {}
        """Those that are under way, by segment."""

    async def find(self, wish: PageWish) -> PageLease:
        """See `KeptPages.find`."""
        here = self._here(wish.keys)
        count = worth_reading(self._weighed(here), wish.page_tokens, self._rates(here, wish))
        return await self._lease(here[:count])

    async def find_all(self, keys: Sequence[bytes]) -> PageLease:
        """See `KeptPages.find_all`."""
        return await self._lease(self._here(keys))

    def _here(self, keys: Sequence[bytes]) -> list[bytes]:
        return list(itertools.takewhile(self._contents.is_here, keys))

    async def _lease(self, keys: Sequence[bytes]) -> PageLease:
        """Pages that are here, in the pool, until one of them has gone meanwhile."""
        contents = self._contents
        wanted = [(key, contents.by_key[key]) for key in keys]
        in_pool = {one.name for _, one in wanted if contents.is_in_pool(one)}
        segments = {one.name: one for _, one in wanted}
        lease = PageLease()
        for name in in_pool:
            self.hold(lease, segments[name])  # it stays while others are read
        below = [one for name, one in segments.items() if name not in in_pool]
        try:
            await asyncio.gather(*map(self._raise, below))
        except BaseException:
            lease.give_back()
            raise
        for one in below:
            if contents.is_in_pool(one):
                self.hold(lease, one)
        for key, one in wanted:
            tier = Tier.DRAM if one.name in in_pool else Tier.SSD
            if (place := self._place(key, one, tier)) is None:
                break
            lease.places += (place,)
            lease.segments += (one,)
        return lease

    def hold(self, lease: PageLease, segment: Segment) -> None:
        """Keeps a segment in the pool for as long as a lease lasts."""
        ledger = self._contents.dram.ledger
        lease.holdings.append(ledger.touch_and_hold(segment.name))

    async def close(self) -> None:
        """Ends what is under way."""
        await asyncio.gather(*self._reads.values(), return_exceptions=True)

    def _weighed(self, keys: Sequence[bytes]) -> list[KeptPage]:
        segments = [self._contents.by_key[key] for key in keys]
        return [KeptPage(one.page_bytes, one.name, self._unread(one)) for one in segments]

    def _unread(self, segment: Segment) -> int:
        return 0 if self._contents.is_in_pool(segment) else segment.stored_bytes

    def _rates(self, keys: Sequence[bytes], wish: PageWish) -> Rates:
        seconds = wish.seconds_per_token
        if seconds is None and keys:
            seconds = self._contents.by_key[keys[-1]].seconds_per_token
        return Rates(self._from_pool.bytes_per_second, self._from_ssd.bytes_per_second, seconds)

    def _place(self, key: bytes, segment: Segment, tier: Tier) -> Place | None:
        """Where a page is in the pool; None: it has gone meanwhile."""
        page = segment.pages.get(key)
        if page is None or not self._contents.is_in_pool(segment):
            return None
        chunk = self._contents.dram.kept[segment.name].chunk
        return Place(key, chunk, page.slot * segment.slot_bytes, tier, page.digest)

    async def _raise(self, segment: Segment) -> None:
        """Brings a segment from SSD into the pool, if there is room, and it is what it should be.

        A caller that is cancelled does not end it: others may wait for the same.
        """
        name = segment.name
        if name not in self._reads and not self._contents.is_in_pool(segment):
            task = self._reads[name] = asyncio.create_task(self._read(segment))
            task.add_done_callback(lambda _: self._reads.pop(name, None))
        if under_way := self._reads.get(name):
            await asyncio.shield(under_way)

    async def _read(self, segment: Segment) -> None:
        contents, began = self._contents, self._clock.now()
        if segment.name not in contents.ssd.ledger:
            return  # it has just gone
        if (kept := contents.take_chunk(segment.name)) is None:
            return
        kept.holding.leases += 1
        on_ssd = contents.ssd.ledger.touch_and_hold(segment.name)
        contents.unread.add(segment.name)
        memory, directory, bad = contents.memory(kept), contents.ssd.directory, False
        try:
            await self._threads.run(partial(files.read, directory, segment, memory))
        except (files.Unreadable, SllmError) as error:
            _log.warning("node.kept_pages_dropped", segment=segment.name, problem=str(error))
            bad = True
        finally:
            contents.unread.discard(segment.name)
            kept.holding.leases -= 1
            on_ssd.leases -= 1
        if bad:
            contents.drop(segment)
            return
        self._from_ssd.observe(segment.stored_bytes, began, self._clock.now())
