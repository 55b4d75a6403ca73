"""A run of kept pages: what one chunk of the pool, or one file, has of them."""

from dataclasses import dataclass, field

from sllm.checkpoint.format.manifest import BLOCK_BYTES


@dataclass(frozen=True, slots=True)
class Page:
    """One page in a segment."""

    slot: int
    digest: bytes
    """xxh3_128 of its bytes, as its worker has computed it."""


@dataclass(slots=True, eq=False)
class Segment:
    """Pages of one space, side by side in the order in which they came.

    A space is a deployment's name, the identity of what it serves, and how its engine lays pages
    out: pages of one space are of one size, and mean the same to every instance of it.
    """

    name: str
    """No digest: on the tiers it stands beside checkpoints."""
    space: str
    page_bytes: int
    slots: int
    """Pages that it has room for."""
    pages: dict[bytes, Page] = field(default_factory=dict)
    """By key: see `sllm.node.worker.page_keys`."""
    used: int = 0
    """Slots that were given out, the first ones."""
    stored: int = 0
    """Of these, slots that are on SSD."""
    writers: int = 0
    """How many are writing to it."""
    seconds_per_token: float | None = None
    """What computing its pages took, as last told. None: nobody has."""

    @property
    def slot_bytes(self) -> int:
        """From one page to the next: whole blocks, as direct I/O needs them."""
        return slot_bytes(self.page_bytes)

    @property
    def stored_bytes(self) -> int:
        """What of it is on SSD."""
        return self.stored * self.slot_bytes

    @property
    def is_full(self) -> bool:
        """Whether it has no room left."""
        return self.used == self.slots

    def take(self, count: int) -> range:
        """Gives slots out, as many as there are of those that are wanted."""
        begin, self.used = self.used, min(self.slots, self.used + count)
        return range(begin, self.used)

    def take_back(self) -> None:
        """Takes back the last slots, as far as they have no page, once nobody writes to it."""
        if not self.writers:
            last = max((page.slot for page in self.pages.values()), default=-1)
            self.used = max(self.stored, last + 1)

    def forget_unstored(self) -> list[bytes]:
        """Forgets what is not on SSD, as the chunk has gone; gives the keys."""
        gone = [key for key, page in self.pages.items() if page.slot >= self.stored]
        for key in gone:
            del self.pages[key]
        self.used = self.stored
        return gone


def slot_bytes(page_bytes: int) -> int:
    """Bytes of a slot for pages of this size."""
    return -(-page_bytes // BLOCK_BYTES) * BLOCK_BYTES
