"""Workers without weights: each makes tokens and texts of one model for whoever asks.

They cost a fork and the reading of a tokenizer, so that the few that were used last are kept for a
while. They are nobody's instances: what an instance needs of the memory, they give up.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import structlog

from sllm import errors
from sllm.clock import Clock
from sllm.node.instances.launching import LaunchEngine
from sllm.node.instances.spec import EngineSpec, InstanceSpec
from sllm.node.instances.worker_client import Worker
from sllm.node.store.tier_store import TierStore
from sllm.node.transfers.work import Found

log = structlog.get_logger()

MAX_WORKERS: Final = 4
MAX_QUESTIONS: Final = 16
"""At one worker at once: others are told to come again."""
SHORT_BYTES: Final = 16 * 1024
"""Of a question that is answered within milliseconds."""
IDLE_SECONDS: Final = 60.0
"""For which one is kept that nobody asks."""
WORKER_BYTES: Final = 256 << 20
"""What one is taken to take: a large tokenizer, and a long text."""
_BUSY_SECONDS: Final = 1.0
_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class TextSource:
    """Whose small files are read."""

    source: str
    engine: EngineSpec
    identity: str
    """Of what the source must be. Empty: whatever it is."""

    def is_of(self, spec: InstanceSpec, identity: str) -> bool:
        """Whether an instance that serves what has this identity has the same model."""
        ours, its = self.engine, spec.engine
        same = (ours.engine, ours.dtype) == (its.engine, its.dtype)
        return same and self.source == spec.source and self.identity == identity


Serving = Callable[[TextSource], Worker | None]
"""The worker of an instance that serves a model. None: there is none."""


@dataclass(slots=True, eq=False)
class _Kept:
    starting: asyncio.Task[Worker]
    users: int = 0
    worker: Worker | None = None
    """Set once it has been started."""
    expiry: asyncio.Task[None] | None = field(default=None, repr=False)
    """While nobody uses it."""


class TextWorkers:
    """Belongs to the event loop."""

    def __init__(
        self, store: TierStore, launch: LaunchEngine, serving: Serving, clock: Clock
    ) -> None:
        """There are none yet.

        Args:
            store: has the small files.
            launch: gives workers.
            serving: finds those of instances.
            clock: waits.
        """
        self._store = store
        self._launch = launch
        self._serving = serving
        self._clock = clock
        self._kept: dict[TextSource, _Kept] = {}
        """The one that was used last comes last."""
        self._ending: set[asyncio.Task[None]] = set()
        self._closing = False

    @asynccontextmanager
    async def of(self, source: TextSource, size_bytes: int) -> AsyncIterator[Worker]:
        """A worker to ask of a model: an instance's, or one without weights, started if need be.

        What is long is nothing for an instance, whose requests would wait for it.

        Raises:
            errors.EngineUnavailable: This node does not have its engine.
            errors.NoCapacity: All that there may be are busy.
            errors.SllmError: Why it cannot be started; whatever the block raises.
        """
        if size_bytes <= SHORT_BYTES and (worker := self._serving(source)):
            yield worker
        else:
            async with self._without_weights(source) as worker:
                yield worker

    @asynccontextmanager
    async def _without_weights(self, source: TextSource) -> AsyncIterator[Worker]:
        kept = self._take(source)
        try:
            yield await _started(kept)
        except errors.WorkerDied:
            self._drop(source, kept)  # the next one gets another
            raise
        except errors.DeadlineExceeded:
            if kept.users == 1:  # nobody else's question ends with it
                self._drop(source, kept)
            raise
        finally:
            kept.users -= 1
            if not kept.users and self._kept.get(source) is kept:
                kept.expiry = asyncio.create_task(self._expire(source, kept))

    def give_way(self, free_bytes: int) -> None:
        """Ends those that are idle, if instances leave less memory than they take."""
        if free_bytes < WORKER_BYTES * len(self._kept):
            for source, kept in [*self._kept.items()]:
                if not kept.users:
                    self._drop(source, kept)

    async def close(self) -> None:
        """Ends all, also those that are at work, and starts no more."""
        self._closing = True
        for source, kept in [*self._kept.items()]:
            self._drop(source, kept)
        await asyncio.gather(*self._ending)

    def _take(self, source: TextSource) -> _Kept:
        if self._closing:
            raise errors.ShuttingDown("this node is going down and starts nothing new")
        kept = self._kept.pop(source, None)
        if kept and kept.worker and kept.worker.gone.done():
            self._end(kept)
            kept = None
        if kept is None:
            self._make_room()
            name = f"text {next(_numbers)}"
            kept = _Kept(asyncio.create_task(self._start(source, name), name=name))
            kept.starting.add_done_callback(lambda _: self._note(source, kept))
        self._kept[source] = kept
        if kept.users >= MAX_QUESTIONS:
            raise errors.NoCapacity(
                f"{kept.users} questions about this model's text are being answered; try again",
                retry_after=_BUSY_SECONDS,
            )
        kept.users += 1
        if kept.expiry:
            kept.expiry.cancel()
            kept.expiry = None
        return kept

    def _make_room(self) -> None:
        if len(self._kept) < MAX_WORKERS:
            return
        for source, kept in self._kept.items():
            if not kept.users:
                self._drop(source, kept)
                return
        raise errors.NoCapacity(
            f"this node makes texts of {MAX_WORKERS} models already; try again",
            retry_after=_BUSY_SECONDS,
        )

    def _note(self, source: TextSource, kept: _Kept) -> None:
        """Takes note of the end of a start."""
        if kept.starting.cancelled() or kept.starting.exception():
            self._drop(source, kept)
        else:
            kept.worker = kept.starting.result()

    async def _start(self, source: TextSource, name: str) -> Worker:
        worker = await self._launch(source.engine.engine, name)
        try:
            await worker.wait_until_serving()
            await self._prepare(worker, source)
        except BaseException:
            await worker.stop()
            raise
        return worker

    async def _prepare(self, worker: Worker, source: TextSource) -> None:
        found = await self._look(source)
        try:
            await worker.prepare(found.directory, source.engine)
        except errors.SllmError:
            if await asyncio.to_thread(found.directory.is_dir):
                raise
            # A copy that was found to be bad has been set aside while it was read.
            found = await self._look(source)
            await worker.prepare(found.directory, source.engine)

    async def _look(self, source: TextSource) -> Found:
        engine, identity = source.engine, source.identity
        return await self._store.inspect(
            source.source, engine.dtype, fresh=False, identity=identity
        )

    async def _expire(self, source: TextSource, kept: _Kept) -> None:
        await self._clock.sleep(IDLE_SECONDS)
        kept.expiry = None
        self._drop(source, kept)

    def _drop(self, source: TextSource, kept: _Kept) -> None:
        if self._kept.get(source) is kept:
            del self._kept[source]
            self._end(kept)

    def _end(self, kept: _Kept) -> None:
        if kept.expiry:
            kept.expiry.cancel()
        ending = asyncio.create_task(_stop(kept), name="end of a text worker")
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)


async def _started(kept: _Kept) -> Worker:
    try:
        return await asyncio.shield(kept.starting)
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task and task.cancelling():
            raise
        raise errors.ShuttingDown("the worker that was to answer does not start") from error


async def _stop(kept: _Kept) -> None:
    kept.starting.cancel()
    (worker,) = await asyncio.gather(kept.starting, return_exceptions=True)
    if not isinstance(worker, BaseException):
        await worker.stop()
