"""Room on a device that starts have been promised, before their weights are there."""

from dataclasses import dataclass

from sllm.node.tiers.checkpoints import SourceRecord
from sllm.node.tiers.ledger import Ledger


@dataclass(slots=True)
class _Wanted:
    """The weights of one source, and who waits for them."""

    seats: int = 0
    size: int = 0
    """Bytes that are kept for them; 0 once their load has room of its own."""


class Reservations:
    """Room that is kept in a ledger. Belongs to the event loop.

    For KV caches until their instances' end, and for weights until they are loaded, once for all
    who want the same.
    """

    def __init__(self, ledger: Ledger) -> None:
        self.kv_bytes = 0
        """For KV caches."""
        self._ledger = ledger
        self._wanted: dict[SourceRecord, _Wanted] = {}

    @property
    def weights_bytes(self) -> int:
        """For weights."""
        return sum(wanted.size for wanted in self._wanted.values())

    def has(self, record: SourceRecord) -> bool:
        """Whether room is kept for the weights of a source, or has been."""
        return record in self._wanted

    def enter(self, record: SourceRecord, weights_bytes: int, kv_bytes: int) -> tuple[str, ...]:
        """Keeps room for one more start, until `leave`.

        Args:
            record: the source of its weights.
            weights_bytes: of them; 0 for what is there, or has room that is kept already.
            kv_bytes: of its KV cache.

        Returns:
            What had to go: see `Ledger.reserve`.

        Raises:
            ModelTooLarge, NoCapacity: as `Ledger.reserve`; nothing is kept then.
        """
        gone = self._ledger.reserve(weights_bytes + kv_bytes)
        wanted = self._wanted.setdefault(record, _Wanted())
        wanted.seats += 1
        wanted.size += weights_bytes
        self.kv_bytes += kv_bytes
        return gone

    def redeem(self, record: SourceRecord) -> None:
        """Ends what is kept for weights: they are there, or their load reserves its own room."""
        wanted = self._wanted.get(record)
        if wanted is not None:
            self._ledger.unreserve(wanted.size)
            wanted.size = 0

    def leave(self, record: SourceRecord, kv_bytes: int) -> None:
        """Undoes one `enter`; what is kept for weights goes with the last who wants them."""
        self._ledger.unreserve(kv_bytes)
        self.kv_bytes -= kv_bytes
        wanted = self._wanted[record]
        wanted.seats -= 1
        if not wanted.seats:
            self.redeem(record)
            del self._wanted[record]
