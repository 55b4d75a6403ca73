"""Where batches are kept."""

from collections.abc import Sequence
from typing import Protocol

from sllm.control.types.batches import Batch, Ended, Item, Outcome


class BatchKeeper(Protocol):
    """All batches. Its methods block, and are called one at a time.

    Each is one transaction, and raises errors.StateUnavailable if it cannot be: then it has done
    nothing.
    """

    def batches(self) -> list[Batch]:
        """All of them, the oldest first."""
        ...

    def stage(self, items: Sequence[Item]) -> None:
        """Stores requests of a batch that is still being submitted.

        Raises:
            errors.QueueFull: All batches together take up as much as they may.
        """
        ...

    def stage_results(self, run_id: str, outcomes: Sequence[Outcome]) -> None:
        """Stores results of a batch that comes from another store, before it is one here."""
        ...

    def unstage(self, run_id: str) -> None:
        """Forgets what was stored of a batch that is not to be."""
        ...

    def add(self, batch: Batch) -> None:
        """Makes a batch of what was staged for it."""
        ...

    def deployments(self, run_id: str) -> list[str]:
        """Names of those that a batch still has requests for."""
        ...

    def waiting(self, run_id: str, deployment: str, after: int, count: int) -> list[Item]:
        """The next `count` requests of a batch for a deployment whose numbers come after one."""
        ...

    def record(self, batch: Batch, ended: Sequence[Ended], now: float) -> Batch:
        """Puts results in the place of requests, and returns the batch as it is from then on.

        A request that has a result already keeps it.
        """
        ...

    def cancel(self, batch: Batch) -> None:
        """Stores that a batch is `batch` now, and drops the requests of it that wait."""
        ...

    def results(self, run_id: str, first: int, count: int) -> list[Outcome]:
        """At most `count` results of a batch, from number `first` on."""
        ...

    def delete(self, batch: Batch) -> None:
        """Forgets a batch with all that belongs to it."""
        ...

    def close(self) -> None:
        """Ends the use of the store."""
        ...
