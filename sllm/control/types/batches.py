"""Batches: requests that nobody waits for, as they are stored and told of."""

from dataclasses import dataclass, replace
from enum import IntEnum


class BatchState(IntEnum):
    """How far a batch is. Values are those of the protocol."""

    RUNNING = 1
    ENDED = 2
    CANCELLED = 3


@dataclass(frozen=True, slots=True)
class BatchHead:
    """What a caller says of a batch as a whole."""

    batch_id: str
    """Empty: any will do."""
    time_limit: float
    """Seconds after which what has not ended fails."""


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch, as of one moment; times are seconds since the epoch."""

    batch_id: str
    run_id: str
    """Unlike the one before, never used again."""
    fingerprint: str
    """Digest of all its requests and of its time limit."""
    requests: int
    created_at: float
    expires_at: float
    finished: int = 0
    failed: int = 0
    ended_at: float | None = None
    cancelled: bool = False

    @property
    def state(self) -> BatchState:
        """How far it is."""
        if self.cancelled:
            return BatchState.CANCELLED
        return BatchState.RUNNING if self.ended_at is None else BatchState.ENDED

    def with_results(self, answers: int, failures: int, now: float) -> "Batch":
        """The batch once as many more of its requests have ended."""
        finished, failed = self.finished + answers, self.failed + failures
        is_over = self.ended_at is None and finished + failed == self.requests
        return replace(
            self, finished=finished, failed=failed, ended_at=now if is_over else self.ended_at
        )

    def as_cancelled(self, now: float) -> "Batch":
        """The batch once nothing more comes of it."""
        return replace(self, cancelled=True, ended_at=now)


class Asks(IntEnum):
    """What a request of a batch asks for, as it is stored."""

    GENERATION = 0
    EMBEDDINGS = 1


@dataclass(frozen=True, slots=True)
class Item:
    """One request of a batch that has not ended."""

    run_id: str
    number: int
    """Within its batch, from 0."""
    request_id: str
    """As its caller names it."""
    deployment: str
    request: bytes
    """A GenerateRequest, or an EmbedRequest."""
    asks: Asks = Asks.GENERATION


@dataclass(frozen=True, slots=True)
class Ended:
    """What has come of a request."""

    item: Item
    is_answer: bool
    """Whether it is one, and no failure."""
    outcome: bytes
    """A BatchResult without its number."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The same, as it is read again."""

    number: int
    """In the order of their ends, from 0."""
    outcome: bytes
    """As in `Ended`."""
