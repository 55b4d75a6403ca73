"""Which segments there are, and what of the tiers they have."""

import uuid
from collections.abc import Iterable

import structlog

from sllm.errors import ModelTooLarge, NoCapacity
from sllm.node.kept import files
from sllm.node.kept.records import KeptBudget
from sllm.node.kept.segment import Page, Segment, slot_bytes
from sllm.node.tiers.dram import DramTier, KeptChunk
from sllm.node.tiers.ssd import SsdTier

OWN_CHUNKS = 4
"""Of the pool, that they may have although idle weights would have to go."""

_log = structlog.get_logger()


class KeptContents:
    """Belongs to the event loop. The tiers give up segments on their own: `look_after` notes it."""

    def __init__(self, ssd: SsdTier, dram: DramTier, budget: KeptBudget) -> None:
        self.ssd = ssd
        self.dram = dram
        self.segments: dict[str, Segment] = {}
        """By name."""
        self.by_key: dict[bytes, Segment] = {}
        """For each page, its segment."""
        self.unread: set[str] = set()
        """Names of segments that have a chunk, into which they are being read."""
        self._budget = budget
        self._open: dict[str, Segment] = {}
        """That pages of a space are put into."""

    def take_in(self, segments: Iterable[Segment]) -> None:
        """Enters what was found on SSD, as far as it may be there."""
        for segment in segments:
            if self.has_ssd_room(segment.name):
                self.segments[segment.name] = segment
                self.by_key.update(dict.fromkeys(segment.pages, segment))
            else:
                self.ssd.detach(segment.name)

    def is_in_pool(self, segment: Segment) -> bool:
        """Whether its pages can be read there."""
        return segment.name in self.dram.kept and segment.name not in self.unread

    def is_here(self, key: bytes) -> bool:
        """Whether a page is on any tier."""
        segment = self.by_key.get(key)
        if segment is None:
            return False
        self.look_after(segment)
        return key in self.by_key

    def look_after(self, segment: Segment) -> None:
        """Forgets what has gone of a segment, since weights have needed its room."""
        if segment.stored and segment.name not in self.ssd.ledger:
            segment.stored = 0
        if segment.name in self.dram.kept:
            return
        if segment.used > segment.stored:
            for key in segment.forget_unstored():
                self._forget_key(key, segment)
        if not segment.stored:
            self._forget(segment)

    def add(self, key: bytes, segment: Segment, page: Page) -> None:
        """Has a page be found, unless the segment is gone, or the page is here already."""
        if segment.name in self.segments and not self.is_here(key):
            segment.pages[key] = page
            self.by_key[key] = segment

    def drop(self, segment: Segment) -> None:
        """Forgets a segment that is of no use, on every tier."""
        self._forget(segment)
        kept = self.dram.kept.get(segment.name)
        if kept and not kept.holding.leases:
            self.dram.drop(segment.name)  # otherwise it goes as what is missed least
        if segment.name in self.ssd.ledger:
            self.ssd.ledger.remove(segment.name)
            self.ssd.detach(segment.name)

    # --- room -----------------------------------------------------------------------------------

    def open_segment(self, space: str, page_bytes: int) -> Segment | None:
        """One with room for a page; None: there is none to be had."""
        segment = self._open.get(space)
        if segment and self.is_in_pool(segment) and not segment.is_full:
            return segment
        slots = self.dram.pool.chunk_bytes // slot_bytes(page_bytes)
        name = f"{files.PREFIX}{uuid.uuid4().hex}"
        if not slots or self.take_chunk(name) is None:
            return None
        segment = Segment(name, space, page_bytes, slots)
        self.segments[name] = self._open[space] = segment
        return segment

    def take_back(self, segment: Segment) -> None:
        """Has no room be lost to pages that have not come: they would push out others that are."""
        segment.take_back()
        if segment.name not in self.segments or segment.writers:
            return
        if not segment.used:
            self.drop(segment)
        elif not segment.is_full:
            self._open.setdefault(segment.space, segment)

    def take_chunk(self, name: str) -> KeptChunk | None:
        """A chunk of the pool; None: there is none that they may have."""
        dram, size = self.dram, self.dram.pool.chunk_bytes
        over = (len(dram.kept) + 1) * size > self._budget.dram_bytes
        if over or (dram.ledger.free < size and len(dram.kept) >= OWN_CHUNKS):
            if (victim := dram.ledger.least_missed_recomputable) is None:
                return None
            dram.drop(victim)
            self._note_loss(victim)
        try:
            return dram.keep(name)
        except (ModelTooLarge, NoCapacity):
            return None

    def has_ssd_room(self, name: str) -> bool:
        """Enters a segment among what is on SSD, unless it is there; whether it may be.

        Weights never go for it.
        """
        ledger, size = self.ssd.ledger, self.dram.pool.chunk_bytes
        if name in ledger:
            return True
        if size > self._budget.ssd_bytes:
            return False
        while ledger.recomputable_bytes + size > self._budget.ssd_bytes or ledger.free < size:
            if (victim := ledger.least_missed_recomputable) is None:
                return False
            ledger.remove(victim)
            self.ssd.detach(victim)
            self._note_loss(victim)
        ledger.add(name, size, recomputable=True)
        return True

    def memory(self, kept: KeptChunk) -> memoryview:
        """The bytes of a chunk."""
        self.dram.pool.touch(kept.chunk)
        return self.dram.pool.view(kept.chunk)

    def _note_loss(self, name: str) -> None:
        if segment := self.segments.get(name):
            self.look_after(segment)

    def _forget(self, segment: Segment) -> None:
        self.segments.pop(segment.name, None)
        if self._open.get(segment.space) is segment:
            del self._open[segment.space]
        for key in segment.pages:
            self._forget_key(key, segment)
        segment.pages.clear()

    def _forget_key(self, key: bytes, segment: Segment) -> None:
        if self.by_key.get(key) is segment:
            del self.by_key[key]

    def check_integrity(self) -> None:
        """Raises AssertionError if what is kept and the books differ."""
        for key, segment in self.by_key.items():
            assert key in segment.pages, "a page is not in its segment"
        for segment in self.segments.values():
            assert 0 <= segment.stored <= segment.used <= segment.slots, "a segment is overfull"
            assert segment.writers >= 0, "writers below 0"
