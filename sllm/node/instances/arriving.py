"""Weights that a worker uses while the rest of them is still being read."""

import asyncio
from collections.abc import Callable, Collection, Coroutine, Sequence
from typing import Any, Final, TypeVar

from sllm import errors
from sllm.checkpoint.format.manifest import Manifest
from sllm.clock import Clock
from sllm.node.device.interface import Placed
from sllm.node.instances.borrowing import Borrowing
from sllm.node.tiers import layers
from sllm.node.tiers.first_use import ChunkOrder
from sllm.node.transfers.work import Arrival, LoadPhase, Step

Result = TypeVar("Result")

Tell = Callable[[Sequence[int]], None]
"""Told of chunks that have arrived, counted over all partitions."""

END_SECONDS: Final = 10.0
"""Within which the end of a worker is known here."""


class Arriving:
    """See `EarlyUser`: one start's. Belongs to the event loop, but for `landed`.

    Once weights are `usable`, the read's chunks are not free before `leave` is called, however it
    ends: that must be when no worker is left that maps them.
    """

    def __init__(
        self, clock: Clock, borrowing: Borrowing | None = None, lent: range | None = None
    ) -> None:
        """Nothing arrives yet.

        Args:
            clock: tells when chunks come.
            borrowing: has others compute some of the layers meanwhile. None: nobody does.
            lent: layers that are computed for another node, and come first. None: all are used.
        """
        self.borrowing = borrowing
        self.is_alone = borrowing is None and lent is None
        """Whether all layers are computed in one process."""
        self._lent = lent
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._arrival: Arrival | None = None
        self._began = 0.0
        self._told_at = 0.0
        self._sizes: tuple[int, ...] = ()
        """Of each chunk, in bytes."""
        self._there: dict[int, float] = {}
        """When each chunk came, by the clock."""
        self._last_at = 0.0
        """When the last one came."""
        self._changed = asyncio.Event()
        self._tell: Tell | None = None
        self._failed: asyncio.Future[BaseException] = self._loop.create_future()
        self._left = asyncio.Event()
        self._weights: asyncio.Task[Placed] | None = None
        self.is_used = False
        """Whether a worker is given what is there."""
        self.awaited: tuple[int, ...] = ()
        """Chunks that were not there then."""

    @property
    def digest(self) -> str:
        """Of what arrives."""
        assert self._arrival, "nothing has begun to arrive"
        return self._arrival.manifest.digest

    @property
    def is_whole(self) -> bool:
        """Whether all has arrived, and is leased."""
        weights = self._weights
        if weights is None or not weights.done() or weights.cancelled():
            return False
        return weights.exception() is None and not self._failed.done()

    @property
    def may_have_lacked(self) -> bool:
        """Whether a worker that has just ended may have touched what was not there.

        The rest may have arrived between that and now.
        """
        is_fresh = self._clock.now() < self._last_at + END_SECONDS
        return self.is_used and (is_fresh or not self.is_whole)

    # --- the read's side ----------------------------------------------------------------------

    def order(self, manifest: Manifest, order: ChunkOrder) -> ChunkOrder:
        """See `EarlyUser.order`."""
        lent = self._lent
        if lent is not None:
            return layers.first(manifest, order, lambda layer: layer in lent)
        return self.borrowing.order(manifest, order) if self.borrowing else order

    def begin(self, arrival: Arrival) -> bool:
        """See `EarlyUser.begin`: one read is followed, and none once the start does without."""
        if self._arrival is not None or self._left.is_set():
            return False
        self._arrival, self._began = arrival, self._clock.now()
        self._sizes = _chunk_sizes(arrival.manifest)
        if self.borrowing:
            self.borrowing.begin(arrival.manifest)
        self._changed.set()
        return True

    def landed(self, index: int) -> None:
        """See `EarlyUser.landed`."""
        self._loop.call_soon_threadsafe(self._take, index)

    async def let_go(self, error: BaseException) -> None:
        """See `EarlyUser.let_go`."""
        if not self._failed.done():
            self._failed.set_result(error)
        if self.is_used:
            await self._left.wait()

    def _take(self, index: int) -> None:
        self._there[index] = self._last_at = self._clock.now()
        self._changed.set()
        if self._tell:
            self._tell([index])

    # --- the start's side ---------------------------------------------------------------------

    async def usable(self, weights: "asyncio.Task[Placed]") -> Arrival | None:
        """Weights before they are all there, once a worker can begin with them.

        From then on their chunks stay, and `awaited` are those that it has to wait for. None: all
        are there, or this read will not bring them.
        """
        self._weights = weights
        enough = asyncio.ensure_future(self._enough())
        try:
            await _first(enough, weights, self._failed)
        finally:
            enough.cancel()
        if weights.done() or self._failed.done():
            self.leave()
            return None
        self.is_used = True
        self.awaited = tuple(sorted(set(range(len(self._sizes))) - self._there.keys()))
        return self._arrival

    async def _enough(self) -> None:
        while self._arrival is None or not self._arrival.at_once <= self._there.keys():
            self._changed.clear()
            await self._changed.wait()

    async def unless_failed(self, work: Coroutine[Any, Any, Result]) -> Result:
        """The result of `work`, which ends if the read fails.

        Raises:
            SllmError: What the read failed with; whatever `work` raises.
        """
        task = asyncio.ensure_future(work)
        try:
            await _first(task, self._failed)
            if self._failed.done():
                raise _typed(self._failed.result())
            return task.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def pass_on(self, tell: Tell) -> None:
        """Tells of what has arrived since `usable`, and of what will."""
        self._tell = tell
        if late := [index for index in self.awaited if index in self._there]:
            tell(late)

    async def until_whole(self) -> None:
        """Returns once all has arrived, and is leased.

        Raises:
            SllmError: It cannot be had.
        """
        assert self._weights, "nothing was waited for"
        await _first(self._weights, self._failed)
        if self._failed.done():
            raise _typed(self._failed.result())
        self._weights.result()

    async def do_without_others(self) -> None:
        """Ends what others compute of it, if they do."""
        if self.borrowing:
            await self.borrowing.close()

    def leave(self) -> None:
        """Tells that no worker is left that uses what has arrived, nor will there be one."""
        self._tell = None
        self._left.set()

    def told(self) -> Step | None:
        """What has been read so far: a part of the start. None: nothing has."""
        self._told_at = self._clock.now()
        return self._step(self._began, self._there.keys())

    def untold(self, moment: float) -> Step | None:
        """What has been read since the start was told of, if any of it came after a moment.

        Args:
            moment: by the clock, in seconds: when a request began that may have waited for it.
        """
        if self._last_at <= max(self._told_at, moment):
            return None  # as of almost all requests
        late = {index for index, at in self._there.items() if at > self._told_at}
        return self._step(self._told_at, late)

    def _step(self, began: float, chunks: Collection[int]) -> Step | None:
        if not chunks:
            return None
        ended = max(self._there[index] for index in chunks)
        size = sum(self._sizes[index] for index in chunks)
        return Step(LoadPhase.READ, began, ended - began, size)


async def _first(*futures: "asyncio.Future[Any]") -> None:
    await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)


def _chunk_sizes(manifest: Manifest) -> tuple[int, ...]:
    return tuple(
        min(entry.chunk_size, entry.size - offset)
        for entry in manifest.partitions
        for offset in range(0, entry.size, entry.chunk_size)
    )


def _typed(error: BaseException) -> errors.SllmError:
    if isinstance(error, errors.SllmError):
        return error
    return errors.Internal(f"the weights could not be read: {error!r}")
