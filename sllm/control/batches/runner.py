"""Runs batches: keeps some of their requests in line, and goes on with those that gave way."""

import asyncio
import time
from collections import deque
from contextlib import aclosing, suppress
from functools import partial
from typing import Final

import structlog

from sllm import errors
from sllm.control.batches.book import BatchBook
from sllm.control.batches.recorder import Recorder
from sllm.control.routing.encodings import Encodings, GaveWay
from sllm.control.routing.router import Router
from sllm.control.tasks import Tasks
from sllm.control.types.batches import Asks, Batch, Ended, Item
from sllm.control.wire import batches as wire

log = structlog.get_logger()

_PAUSES: Final = (1.0, 5.0, 30.0)
"""Seconds before a request is tried again for which nobody could do anything."""
_IN_LINE: Final = 32
"""Requests that wait for one deployment: enough for an instance that has just got ready."""


class Runner:
    """Belongs to the event loop. To the router it is a caller like any other."""

    def __init__(self, book: BatchBook, router: Router, encodings: Encodings) -> None:
        self._book = book
        self._router = router
        self._encodings = encodings
        self._recorder = Recorder(book)
        self._tasks = Tasks()
        self._unfed: dict[str, deque[Batch]] = {}
        """By deployment, for those that have any, the oldest first."""
        self._under_way: dict[str, set[asyncio.Task[None]]] = {}
        """By run, for those that have any."""
        self._closing = False

    async def begin(self, batch: Batch) -> None:
        """Runs what a batch still has to do."""
        for name in await self._book.deployments(batch):
            if name in self._unfed:
                self._unfed[name].append(batch)
            else:
                self._unfed[name] = deque([batch])
                self._tasks.spawn(self._feed(name), name=f"feed {name}")

    def end(self, batch: Batch) -> None:
        """Ends what is under way of a batch."""
        for task in list(self._under_way.get(batch.run_id, ())):
            task.cancel()

    async def expire(self, batch: Batch) -> None:
        """Has everything fail that has not ended: the batch's time is up."""
        self.end(batch)
        late = errors.DeadlineExceeded("the batch's time limit passed before it had ended")
        for name in await self._book.deployments(batch):
            async with aclosing(self._book.waiting(batch, name)) as items:
                async for item in items:
                    await self._recorder.has_room()
                    outcome = wire.failed(item.request_id, late)
                    self._recorder.add(batch.batch_id, Ended(item, False, outcome))

    def leave_off(self) -> None:
        """Begins nothing more, and takes ends from now on for those of this control plane."""
        self._closing = True

    async def close(self) -> None:
        """Leaves what is under way to the nodes; it is gone on with after a restart."""
        self.leave_off()
        await self._tasks.close()
        await self._recorder.close()

    # --- feeding ------------------------------------------------------------------------------

    async def _feed(self, name: str) -> None:
        """Gives the requests for one deployment to the router as fast as it gives them away."""
        line = asyncio.Semaphore(_IN_LINE)
        try:
            while batches := self._unfed[name]:
                async with aclosing(self._book.waiting(batches[0], name)) as items:
                    async for item in items:
                        await self._recorder.has_room()
                        await line.acquire()
                        self._run(batches[0], item, _Place(line))
                batches.popleft()
        finally:
            del self._unfed[name]

    def _run(self, batch: Batch, item: Item, place: "_Place") -> None:
        if not self._book.is_running(batch):  # it was cancelled meanwhile
            return place.leave()
        name = f"request {item.number} of {batch.batch_id}"
        task = self._tasks.spawn(self._finish(batch, item, place), name=name)
        self._under_way.setdefault(batch.run_id, set()).add(task)
        task.add_done_callback(partial(self._ended, batch.run_id))
        return None

    def _ended(self, run_id: str, task: asyncio.Task[None]) -> None:
        tasks = self._under_way[run_id]
        tasks.discard(task)
        if not tasks:
            del self._under_way[run_id]

    # --- one request --------------------------------------------------------------------------

    async def _finish(self, batch: Batch, item: Item, place: "_Place") -> None:
        """Sees to it that there is a result of a request, unless the control plane goes down."""
        try:
            embeds = item.asks is Asks.EMBEDDINGS
            outcome = await (self._embed if embeds else self._generate)(batch, item, place)
            is_answer = True
        except Exception as error:
            if self._closing:
                return
            outcome, is_answer = wire.failed(item.request_id, _typed(error)), False
        finally:
            place.leave()
        self._recorder.add(batch.batch_id, Ended(item, is_answer, outcome))

    async def _generate(self, batch: Batch, item: Item, place: "_Place") -> bytes:
        samples = range(wire.samples(item.request))
        answers = [await self._answer(batch, item, sample, place) for sample in samples]
        return wire.answered(item.request_id, answers)

    async def _embed(self, batch: Batch, item: Item, place: "_Place") -> bytes:
        """Vectors, however often the request for them gives way: nothing of it is kept then.

        Raises:
            errors.SllmError: Why there are none.
        """
        pauses = iter(_PAUSES)
        while True:
            await place.take(batch.expires_at - time.time())
            request = wire.EmbedRequest.FromString(item.request)
            remaining = batch.expires_at - time.time()
            try:
                answer = await self._encodings.embed_behind_others(request, remaining, place.leave)
                return wire.embedded(item.request_id, answer)
            except GaveWay:
                continue
            except errors.Unavailable:
                if self._closing or (pause := next(pauses, None)) is None:
                    raise
                await asyncio.sleep(pause)

    async def _answer(
        self, batch: Batch, item: Item, sample: int, place: "_Place"
    ) -> wire.Gathered:
        """The whole of one sample, however often it gives way. The next follows: nobody waits.

        Raises:
            errors.SllmError: Why there is none.
        """
        request_id = f"{batch.batch_id}/{batch.run_id}/{item.number}"
        request = wire.begun(item.request, request_id, sample, may_be_under_way=True)
        gathered, pauses = wire.Gathered(), iter(_PAUSES)
        while True:
            try:
                if await self._is_whole(batch, request, gathered, place):
                    return gathered
                gathered.continue_in(request)
            except errors.SourceChanged:
                if not request.continuation.identity:
                    raise
                # Nobody has seen any of it, and its tokens are of another model.
                gathered = wire.Gathered()
                request = wire.begun(item.request, request_id, sample)
            except errors.Unavailable:
                if self._closing or (pause := next(pauses, None)) is None:
                    raise
                gathered.continue_in(request)
                await asyncio.sleep(pause)

    async def _is_whole(
        self,
        batch: Batch,
        request: wire.GenerateRequest,
        gathered: wire.Gathered,
        place: "_Place",
    ) -> bool:
        """Gathers what comes of a request; says whether that is all of it, or it gave way."""
        await place.take(batch.expires_at - time.time())
        await self._router.vacant(request.request_id)
        await self._router.settle(request)
        ticket = self._router.take(request, batch.expires_at - time.time(), background=True)
        try:
            async with aclosing(self._router.events(ticket)) as events:
                async for event in events:
                    if gathered.take(event):
                        place.leave()
        except errors.SllmError:
            if not ticket.gave_way:
                raise
            return False
        return True


def _typed(error: Exception) -> errors.SllmError:
    """What a caller is told. A fault of ours ends its request, and not the batch's ever ending."""
    if isinstance(error, errors.SllmError):
        return error
    log.error("control.batched_request_died", exc_info=error)
    return errors.Internal(f"{type(error).__name__}: {error}")


class _Place:
    """A place in line. Whoever is given one has it."""

    def __init__(self, line: asyncio.Semaphore) -> None:
        self._line = line
        self._held = True

    async def take(self, timeout: float) -> None:
        """Returns once the place is there, or after `timeout` seconds: the request will be told."""
        if not self._held:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._line.acquire(), max(0.0, timeout))
                self._held = True

    def leave(self) -> None:
        """Gives it to the next, if it is held."""
        if self._held:
            self._held = False
            self._line.release()
