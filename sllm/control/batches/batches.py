"""What callers have done with batches, and what time does."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Final

import structlog

from sllm import errors
from sllm.control.batches.book import BatchBook
from sllm.control.batches.keeper import BatchKeeper
from sllm.control.batches.runner import Runner
from sllm.control.batches.submission import Submission
from sllm.control.config import ControlConfig
from sllm.control.routing.encodings import Encodings
from sllm.control.routing.router import Router
from sllm.control.tasks import Tasks
from sllm.control.types.batches import Batch, BatchHead, BatchState, Outcome
from sllm.control.wire import batches as wire

log = structlog.get_logger()

_SWEEP_SECONDS: Final = 1.0


class Batches:
    """Belongs to the event loop."""

    def __init__(
        self, store: BatchKeeper, router: Router, encodings: Encodings, config: ControlConfig
    ) -> None:
        self._book = BatchBook(store)
        self._router = router
        self._encodings = encodings
        self._config = config
        self._runner = Runner(self._book, router, encodings)
        self._tasks = Tasks()
        self._expired: set[str] = set()
        """Runs whose time limit has passed."""

    @property
    def known(self) -> Mapping[str, Batch]:
        """All batches that can be read, by id."""
        return self._book.batches

    def kept_until(self, batch: Batch) -> float | None:
        """Seconds since the epoch until which a batch can be read. None: it has not ended."""
        if batch.ended_at is None:
            return None
        return batch.ended_at + self._config.batch_retention_seconds

    async def load(self) -> None:
        """Goes on with what was submitted before a restart."""
        await self._book.load()
        for batch in self._book.batches.values():
            if batch.state is BatchState.RUNNING:
                self._begin(batch)

    def _begin(self, batch: Batch) -> None:
        """Begins with a batch, whether or not its caller stays."""
        self._tasks.spawn(self._runner.begin(batch), name=f"begin {batch.batch_id}")

    async def run(self) -> None:
        """Ends batches whose time is up, and forgets those that ended long ago, until cancelled."""
        while True:
            try:
                await self._sweep()
            except errors.SllmError as error:
                log.warning("control.batches_not_swept", error=error.message)
            await asyncio.sleep(_SWEEP_SECONDS)

    async def submit(self, head: BatchHead, requests: AsyncIterator[wire.Batched]) -> Batch:
        """Takes a batch, and begins with it; see Submission."""
        submission = Submission(head, self._book, self._router, self._encodings, self._config)
        batch = await submission.take(requests)
        if submission.made(batch):
            self._begin(batch)
        return batch

    def batch(self, batch_id: str) -> Batch:
        """See BatchBook."""
        return self._book.batch(batch_id)

    def results(self, batch_id: str, first: int, follow: bool) -> AsyncGenerator[Outcome]:
        """See BatchBook."""
        return self._book.results(batch_id, first, follow)

    async def cancel(self, batch_id: str) -> Batch:
        """Ends a batch; see BatchBook."""
        batch = await self._book.cancel(batch_id)
        self._runner.end(batch)
        return batch

    async def delete(self, batch_id: str) -> None:
        """See BatchBook."""
        await self._book.delete(batch_id)

    def end_streams(self) -> None:
        """Ends those who follow a batch; nothing more is begun."""
        self._runner.leave_off()
        self._book.end_streams()

    async def close(self) -> None:
        """Stores what has come, and leaves the rest for after a restart."""
        await self._tasks.close()
        await self._runner.close()
        await self._book.close()

    async def _sweep(self) -> None:
        now = time.time()
        for batch in list(self._book.batches.values()):
            until = self.kept_until(batch)
            if until is not None and until <= now:
                await self._book.forget(batch)
                self._expired.discard(batch.run_id)
            elif until is None and batch.expires_at <= now and batch.run_id not in self._expired:
                self._expired.add(batch.run_id)
                await self._runner.expire(batch)
