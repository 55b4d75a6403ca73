"""All batches: known in memory, and stored before anybody is told."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Final, ParamSpec, TypeVar

import structlog

from sllm import errors
from sllm.control.batches.keeper import BatchKeeper
from sllm.control.state.durable import StoreThread
from sllm.control.types.batches import Batch, BatchState, Ended, Item, Outcome

log = structlog.get_logger()

_PAGE: Final = 256
_RESULTS_PAGE: Final = 32
"""Results may be large, and each reader has a page of them."""
_RETRY_SECONDS: Final = 1.0

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class BatchBook:
    """Belongs to the event loop."""

    def __init__(self, store: BatchKeeper) -> None:
        self._store = store
        self._thread = StoreThread()
        self._batches: dict[str, Batch] = {}
        """By id, the oldest first."""
        self._changed = asyncio.Event()
        """Set, and another one, when there are results or a batch has ended."""
        self._changing = asyncio.Lock()
        """A batch is another only when that is stored: changes follow one another."""
        self._closing = False

    @property
    def batches(self) -> Mapping[str, Batch]:
        """All of them, by id, the oldest first."""
        return self._batches

    def batch(self, batch_id: str) -> Batch:
        """The batch of this id.

        Raises:
            errors.BatchNotFound: There is none.
        """
        batch = self._batches.get(batch_id)
        if batch is None:
            raise errors.BatchNotFound(
                f"no batch is named {batch_id!r}; ListBatches tells which there are"
            )
        return batch

    async def load(self) -> None:
        """Takes in what was stored before a restart."""
        stored = await self._thread.run(self._store.batches)
        self._batches = {one.batch_id: one for one in stored}

    async def close(self) -> None:
        """Ends the use of the store."""
        await self._thread.run(self._store.close)
        self._thread.end()

    def end_streams(self) -> None:
        """Ends those who follow a batch."""
        self._closing = True
        self._tell()

    # --- changes ------------------------------------------------------------------------------

    async def stage(self, items: Sequence[Item]) -> None:
        """Stores requests of a batch that is still being submitted."""
        await self._thread.run(self._store.stage, items)

    async def unstage(self, run_id: str) -> None:
        """Forgets them again."""
        await self._thread.run(self._store.unstage, run_id)

    async def add(self, batch: Batch) -> Batch:
        """Makes a batch of what was staged for it; returns the one of this id and content.

        Raises:
            errors.RequestIdInUse: There is one of this id, with other content.
        """
        async with self._changing:
            known = self._batches.get(batch.batch_id)
            if known is None:
                await self._thread.run(self._store.add, batch)
                self._batches[batch.batch_id] = batch
                return batch
        await self.unstage(batch.run_id)
        if known.fingerprint != batch.fingerprint:
            raise errors.RequestIdInUse(
                f"batch id {batch.batch_id!r} was used for another batch; choose a new one"
            )
        return known

    async def record(self, batch_id: str, ended: Sequence[Ended]) -> None:
        """Stores results; those of what is cancelled or forgotten by now are dropped.

        Raises:
            errors.StateUnavailable: They are not stored.
        """
        async with self._changing:
            batch = self._batches.get(batch_id)
            mine = [one for one in ended if batch and one.item.run_id == batch.run_id]
            if batch is None or batch.state is not BatchState.RUNNING:
                return
            now = time.time()
            self._batches[batch_id] = await self._thread.run(self._store.record, batch, mine, now)
        self._tell()

    async def cancel(self, batch_id: str) -> Batch:
        """Has nothing more come of a batch; one that has ended stays as it is.

        Raises:
            errors.BatchNotFound: There is none of this id.
        """
        async with self._changing:
            batch = self.batch(batch_id)
            if batch.state is BatchState.RUNNING:
                batch = batch.as_cancelled(time.time())
                await self._thread.run(self._store.cancel, batch)
                self._batches[batch_id] = batch
        self._tell()
        return batch

    async def delete(self, batch_id: str) -> None:
        """Forgets a batch that has ended.

        Raises:
            errors.BatchNotFound: There is none of this id.
            errors.BatchUnderWay: It has not ended.
        """
        async with self._changing:
            batch = self.batch(batch_id)
            if batch.state is BatchState.RUNNING:
                raise errors.BatchUnderWay(f"batch {batch_id} has not ended; cancel it first")
            await self._thread.run(self._store.delete, batch)
            del self._batches[batch_id]
        self._tell()

    async def forget(self, batch: Batch) -> None:
        """The same by itself: of one that is another by now nothing is forgotten."""
        async with self._changing:
            known = self._batches.get(batch.batch_id)
            if known is None or known.run_id != batch.run_id:
                return
            await self._thread.run(self._store.delete, batch)
            del self._batches[batch.batch_id]
        self._tell()

    # --- reading ------------------------------------------------------------------------------

    async def deployments(self, batch: Batch) -> list[str]:
        """Names of those that a batch still has requests for."""
        return await self._surely(self._store.deployments, batch.run_id)

    async def waiting(self, batch: Batch, deployment: str) -> AsyncGenerator[Item]:
        """A batch's requests for a deployment that had no result when it was asked for them."""
        after, page = -1, _PAGE
        while page == _PAGE:
            items = await self._surely(self._store.waiting, batch.run_id, deployment, after, _PAGE)
            for item in items:
                yield item
            after, page = items[-1].number if items else after, len(items)

    async def results(self, batch_id: str, first: int, follow: bool) -> AsyncGenerator[Outcome]:
        """A batch's results from number `first` on; `follow`: until there are no more to come.

        Raises:
            errors.BatchNotFound: There is none of this id, or no longer.
            errors.ShuttingDown: The control plane goes down; read on from the next number.
        """
        run_id = self.batch(batch_id).run_id
        while True:
            page = await self._thread.run(self._store.results, run_id, first, _RESULTS_PAGE)
            for outcome in page:
                first = outcome.number + 1
                yield outcome
            changed = self._changed
            if self._is_new(batch_id, run_id, first):
                continue
            if not follow or self.batch(batch_id).state is not BatchState.RUNNING:
                return
            if self._closing:
                raise errors.ShuttingDown("the control plane is going down; read on later")
            await changed.wait()

    def _is_new(self, batch_id: str, run_id: str, first: int) -> bool:
        """Whether there are results from number `first` on."""
        batch = self.batch(batch_id)
        if batch.run_id != run_id:
            raise errors.BatchNotFound(f"batch {batch_id} is another than it was")
        return first < batch.finished + batch.failed

    def is_running(self, batch: Batch) -> bool:
        """Whether more is to come of a batch."""
        known = self._batches.get(batch.batch_id, batch)
        return known.run_id == batch.run_id and known.state is BatchState.RUNNING

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _surely(
        self, work: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Result:
        """The same as the thread's `run`, tried until it can be done: no caller is there to ask."""
        while True:
            try:
                return await self._thread.run(work, *args, **kwargs)
            except errors.StateUnavailable as error:
                log.warning("control.batches_unavailable", error=error.message)
                await asyncio.sleep(_RETRY_SECONDS)
