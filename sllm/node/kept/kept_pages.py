"""Pages of KV caches that are kept: found by what they were computed of, given and taken back.

Pages are never changed. Each is known by a key that follows from its tokens, from all before them,
and from what computed it. They lie in segments, each as large as a chunk of the pool. What weights
leave of the pool is theirs, up to a bound, and a few chunks in any case; when weights need the room
they go first. Segments that rest are written to SSD, where the same holds.
"""

import asyncio
import itertools
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

import structlog

from sllm.clock import Clock
from sllm.errors import SllmError
from sllm.node.kept import files, metrics
from sllm.node.kept.contents import KeptContents
from sllm.node.kept.finding import Finder
from sllm.node.kept.prefixes import NamedPrefixes
from sllm.node.kept.records import KeptBudget, PageLease, PageWish, Place
from sllm.node.kept.segment import Page, Segment
from sllm.node.tiers import ssd_files
from sllm.node.tiers.dram import DramTier
from sllm.node.tiers.ssd import SsdTier
from sllm.node.tiers.types import Tier
from sllm.node.transfers.loads import Threads
from sllm.node.transfers.speeds import Speed, Speeds

SETTLE_SECONDS = 1.0
"""After something was written, before it goes to SSD with whatever has come since."""
_CLOSE_SECONDS = 5.0
"""What writing the rest to SSD may take at the end."""

_log = structlog.get_logger()


class KeptPages:
    """Belongs to the event loop; disk is left to threads."""

    def __init__(
        self,
        ssd: SsdTier,
        dram: DramTier,
        speeds: Speeds,
        threads: Threads,
        budget: KeptBudget,
        clock: Clock,
    ) -> None:
        """Has nothing yet.

        Args:
            ssd: has the directory, and the books of it.
            dram: the pool, and the books of that.
            speeds: of the links between them.
            threads: read and write.
            budget: what it may have of the tiers.
            clock: tells when what was written rests.
        """
        self.is_on = budget.dram_bytes >= dram.pool.chunk_bytes
        """Whether any page may be kept."""
        self.int8 = budget.int8
        """Whether workers keep them with eight bits a number."""
        self.chunk_bytes = dram.pool.chunk_bytes
        """Of each chunk of the pool."""
        self._from_pool = Speed(speeds.dram_to_device.bytes_per_second)
        self._contents = KeptContents(ssd, dram, budget)
        self._finder = Finder(self._contents, speeds.ssd_to_dram, self._from_pool, threads, clock)
        self.prefixes = NamedPrefixes(self._contents, speeds.ssd_to_dram, self._from_pool, clock)
        """Which prompts are kept."""
        self._ssd = ssd
        self._dram = dram
        self._threads = threads
        self._has_ssd = self.is_on and budget.ssd_bytes >= dram.pool.chunk_bytes
        self._clock = clock
        self._paces: dict[str, float] = {}
        """By space, as last told."""
        self._changed = asyncio.Event()
        self._settling: asyncio.Task[None] | None = None

    def used_bytes(self) -> dict[str, int]:
        """What it has of the tiers, by their names."""
        ledgers = self._dram.ledger, self._ssd.ledger
        return {one.tier.name: one.recomputable_bytes for one in ledgers}

    async def open(self) -> None:
        """Takes stock of what is on SSD, and begins to write there."""
        directory, chunk_bytes = self._ssd.directory, self._dram.pool.chunk_bytes
        found, others = await self._threads.run(partial(files.found, directory, chunk_bytes))
        for place in others:
            self._ssd.detach(place.name)
        if self._has_ssd:
            self._contents.take_in(found)
            paces = ((one.space, one.seconds_per_token) for one in found)
            self._paces = {space: pace for space, pace in paces if pace is not None}
            self._settling = asyncio.create_task(self._settle(), name="kept pages to SSD")
        else:
            for segment in found:
                self._ssd.detach(segment.name)
        await self._delete_removed()

    async def close(self) -> None:
        """Writes what rests to SSD, and ends."""
        await self._finder.close()
        if self._settling is None:
            return
        self._settling.cancel()
        await asyncio.gather(self._settling, return_exceptions=True)
        with suppress(TimeoutError, SllmError):
            await asyncio.wait_for(self._store_all(), _CLOSE_SECONDS)

    async def find(self, wish: PageWish) -> PageLease:
        """The first pages of those wanted, as many as are here and sooner read than computed.

        They are in the pool when this returns, and stay until `release`.
        """
        return await self._finder.find(wish)

    async def find_all(self, keys: Sequence[bytes]) -> PageLease:
        """As `find`, however long reading them takes: another node is to have them."""
        return await self._finder.find_all(keys)

    def count(self, keys: Sequence[bytes]) -> int:
        """How many of the pages, from the first on, are here."""
        return sum(1 for _ in itertools.takewhile(self._contents.is_here, keys))

    def release(self, lease: PageLease, bad: Sequence[int] = ()) -> None:
        """Gives a lease back. A second call does nothing.

        Args:
            lease: that `find` has given.
            bad: which of its pages were not what they should be: their segments go.
        """
        lease.give_back()
        if bad:
            metrics.record_corrupt(len(bad))
        for segment in {
            lease.segments[index].name: lease.segments[index] for index in bad
        }.values():
            _log.error("node.kept_pages_corrupt", segment=segment.name)
            self._contents.drop(segment)
            self._changed.set()

    def make_room(
        self, space: str, page_bytes: int, keys: Sequence[bytes], seconds_per_token: float | None
    ) -> PageLease:
        """Places for those of the pages that are not here, as far as there is room.

        They are pages once `keep` has been told their digests, which ends the lease.
        """
        lease, contents = PageLease(), self._contents
        missing = [key for key in dict.fromkeys(keys) if not contents.is_here(key)]
        while missing and (segment := contents.open_segment(space, page_bytes)):
            segment.seconds_per_token = seconds_per_token or segment.seconds_per_token
            self._finder.hold(lease, segment)
            segment.writers += 1
            chunk = self._dram.kept[segment.name].chunk
            for slot in segment.take(len(missing)):
                place = Place(missing.pop(0), chunk, slot * segment.slot_bytes, Tier.DRAM)
                lease.places += (place,)
                lease.segments += (segment,)
        return lease

    def keep(self, lease: PageLease, digests: Sequence[bytes]) -> None:
        """Ends a lease of `make_room`: what was written can be found from now on.

        Args:
            lease: the lease. A second call does nothing.
            digests: of what was written, for each place; empty where nothing was. None at all if
                nobody will tell.
        """
        if not lease.holdings:
            return
        written, segments = 0, {one.name: one for one in lease.segments}.values()
        for place, segment, digest in zip(lease.places, lease.segments, digests, strict=False):
            if digest:
                page = Page(place.offset // segment.slot_bytes, digest)
                self._contents.add(place.key, segment, page)
                written += segment.page_bytes
        for segment in segments:
            segment.writers -= 1
        metrics.record_written(written)
        self.release(lease)
        for segment in segments:
            self._contents.take_back(segment)
        self._changed.set()

    def pace(self, space: str) -> float | None:
        """Seconds that computing a token of a prompt takes, in a space. None: not known."""
        return self._paces.get(space)

    def note_pace(self, space: str, seconds_per_token: float) -> None:
        """Learns that from whoever computes there."""
        self._paces[space] = seconds_per_token

    @property
    def bytes_per_second(self) -> float:
        """Of pages between the pool and a worker's cache."""
        return self._from_pool.bytes_per_second

    def observe_read(self, lease: PageLease, size_bytes: int, seconds: float) -> None:
        """Learns from pages that a worker has copied into its cache: the first ones of a lease."""
        now, left = self._clock.now(), size_bytes
        for place, segment in zip(lease.places, lease.segments, strict=True):
            if left >= segment.page_bytes:
                metrics.record_read(place.tier.name, segment.page_bytes)
                left -= segment.page_bytes
        self._from_pool.observe(size_bytes, now - seconds, now)

    async def _settle(self) -> None:
        """Writes to SSD what was written to the pool, a moment later."""
        while True:
            await self._changed.wait()
            await self._clock.sleep(SETTLE_SECONDS)
            self._changed.clear()
            try:
                await self._store_all()
            except Exception:
                _log.exception("node.kept_pages_not_stored")

    async def _store_all(self) -> None:
        for segment in list(self._contents.segments.values()):
            self._contents.look_after(segment)
            if segment.stored < segment.used and not segment.writers:
                await self._store(segment)
        await self._delete_removed()

    async def _store(self, segment: Segment) -> None:
        kept = self._dram.kept.get(segment.name)
        if kept is None or not self._contents.has_ssd_room(segment.name):
            return
        end, memory = segment.used, self._contents.memory(kept)
        part = files.Part(segment.name, segment.stored_bytes, end * segment.slot_bytes)
        index = files.index_of(segment, end)
        kept.holding.leases += 1
        holding = self._ssd.ledger.touch_and_hold(segment.name)
        write = partial(files.write, self._ssd.directory, part, memory, index)
        try:
            await self._threads.run(write)
        except OSError as error:
            self._ssd.refused(error)
            if not segment.stored and segment.name in self._ssd.ledger:
                self._ssd.ledger.remove(segment.name)  # it has no place where nothing of it is
        else:
            segment.stored = end
        finally:
            kept.holding.leases -= 1
            holding.leases -= 1
            if segment.name not in self._ssd.ledger:  # what was written meanwhile is nobody's
                segment.stored = 0
                self._ssd.detach(segment.name)

    async def _delete_removed(self) -> None:
        await self._threads.run(partial(ssd_files.delete_all, self._ssd.take_removed()))

    def check_integrity(self) -> None:
        """Raises AssertionError if what is kept and the books differ."""
        self._contents.check_integrity()
