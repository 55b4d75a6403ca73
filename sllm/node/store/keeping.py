"""What stays on the tiers, and what goes first or last, beside what leases say."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial

from sllm.node.store.lease import Lease
from sllm.node.tiers.dram import DramCopy, DramTier
from sllm.node.tiers.ledger import Holding
from sllm.node.tiers.ssd import SsdCopy, SsdTier


class Keeping:
    """Who wants which copies kept. Belongs to the event loop."""

    def __init__(self, ssd: SsdTier, dram: DramTier, changed: Callable[[], None]) -> None:
        """Has what was made ready of pinned checkpoints go last.

        `changed` is called after every change.
        """
        self._ssd = ssd
        self._dram = dram
        self._changed = changed
        ssd.ledger.goes_last = partial(_is_of_pinned, ssd, ssd.copies)
        dram.ledger.goes_last = partial(_is_of_pinned, ssd, dram.copies)

    @contextmanager
    def yielding(self, lease: Lease) -> Iterator[None]:
        """Tells meanwhile that a lease on the pool is given up where its room is needed."""
        copy = self._dram.copies.get(lease.digest)
        if copy is None:
            yield
            return
        copy.holding.yielding += 1
        self._changed()
        try:
            yield
        finally:
            copy.holding.yielding -= 1

    @contextmanager
    def pinned(self, lease: Lease) -> Iterator[None]:
        """Has what was made ready of a leased checkpoint go last, on the tiers of the lease."""
        digest = lease.digest
        dram = self._dram.copies.get(digest) if lease.chunks else None
        holdings = [copy.holding for copy in (self._ssd.copies.get(digest), dram) if copy]
        for one in holdings:
            one.pins += 1
        try:
            yield
        finally:
            for one in holdings:
                one.pins -= 1

    def keep(self, digest: str, held: ExitStack) -> None:
        """Leases the copy on SSD, or else that in the pool, until `held` is closed."""
        copy = self._ssd.copies.get(digest) or self._dram.copies.get(digest)
        if copy is not None:
            copy.holding.leases += 1
            held.callback(self._let_go, copy.holding)
            self._changed()

    def _let_go(self, holding: Holding) -> None:
        holding.leases -= 1
        self._changed()


def _is_of_pinned(ssd: SsdTier, copies: Mapping[str, SsdCopy | DramCopy], digest: str) -> bool:
    """Whether a checkpoint was made ready of one that is pinned on a tier, which has `copies`."""
    copy = ssd.copies.get(digest)
    made_of = copies.get(copy.made_of) if copy else None
    return bool(made_of and made_of.holding.pins)
