"""Has the caches of a node's instances follow what their requests need, within one budget."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final, Protocol

import structlog

from sllm import errors
from sllm.clock import Clock
from sllm.config import format_bytes
from sllm.node.device.kv_shares import CacheSizes, CacheUse, Claim, divide, wanted

log = structlog.get_logger()

LOOK_SECONDS: Final = 0.2
"""Between two looks at what requests need, while there are any."""
START_SECONDS: Final = 60.0
"""What a start waits at most for memory that others' running requests have."""
_MOST: Final = 4
"""Times what it was started with, that an instance may come to have."""
_KEPT: Final = 8
"""The part of the budget that is left for starts, before any has more than its own: one by this."""


class SharingWorker(Protocol):
    """A worker whose cache can be made larger and smaller."""

    @property
    def running(self) -> int:
        """Requests that it has."""
        ...

    @property
    def waiting(self) -> int:
        """Of these, those that wait for room in the cache."""
        ...

    async def resize_cache(self, share_bytes: int) -> CacheUse:
        """Says what its cache may take from now on; gives what it has, which may still be more.

        Raises:
            errors.SllmError: It has not answered.
        """
        ...


class KvShare:
    """What one instance has of the budget."""

    def __init__(self, granted: int, most: int) -> None:
        self.granted = granted
        self.bytes = 0
        """What its cache may take; less than `granted` until it `has_all`."""
        self.has_all = asyncio.Event()
        """Whether it has had what was granted, without which it does not begin."""
        self.more_bytes = most - granted
        """What it may come to have beyond that."""
        self.worker: SharingWorker | None = None
        """None: what it has does not change."""
        self.target = granted
        """What it was told to take; whole pages may be a little less."""
        self.use = CacheUse(0, granted, 0)

    def follow(self, worker: SharingWorker) -> None:
        """From now on its share follows what the requests of its worker need."""
        self.worker = worker

    async def wait(self) -> None:
        """Returns once it has all that was granted.

        Raises:
            errors.NoCapacity: Others' requests have run on with it for too long.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(START_SECONDS):
                await self.has_all.wait()
        if not self.has_all.is_set():
            raise errors.NoCapacity(
                f"{format_bytes(self.granted)} of KV cache are lent to instances whose requests "
                "still run; try again later, or give the node more (--kv)"
            )

    @property
    def sizes(self) -> CacheSizes | None:
        """What it has, for operators; in any thread. None: what was granted, and no other."""
        if self.worker is None:
            return None
        used = self.use.used_bytes if self.worker.running else 0  # nobody looks at those at rest
        return CacheSizes(self.granted, self.bytes, used)

    @property
    def claim(self) -> Claim:
        """What it needs now."""
        granted, worker, use = self.granted, self.worker, self.use
        if worker is None:
            return Claim(granted, granted, granted, granted)
        wants = wanted(
            use.used_bytes, use.least_bytes, worker.running - worker.waiting, worker.waiting
        )
        return Claim(min(use.least_bytes, self.bytes), wants, granted, granted + self.more_bytes)

    @property
    def is_at_rest(self) -> bool:
        """Whether it has what was granted, and nobody needs it to be otherwise."""
        if self.worker is None:
            return self.has_all.is_set()
        return not self.worker.running and self.target == self.granted >= self.bytes

    async def resize(self, target: int) -> None:
        """Has the worker's cache take no more than that, as soon as its requests let it."""
        assert self.worker is not None
        self.target, self.bytes = target, max(self.bytes, target)
        try:
            self.use = await self.worker.resize_cache(target)
        except errors.SllmError as error:  # it may have heard it all the same
            log.warning("instance.cache_not_resized", problem=error.message)
        else:
            self.bytes = self.use.share_bytes


class KvSharing:
    """The shares of a node's instances. Belongs to the event loop."""

    def __init__(self, budget: int, clock: Clock) -> None:
        """`budget`: bytes, for all of them."""
        self._budget = budget
        self._clock = clock
        self._shares: set[KvShare] = set()
        self._looking: asyncio.Task[None] | None = None

    @contextmanager
    def share(self, granted: int) -> Iterator[KvShare]:
        """One more share, of an instance that was promised so much, until it has gone."""
        most = max(granted, min(self._budget - self._budget // _KEPT, _MOST * granted))
        share = KvShare(granted, most)
        self._shares.add(share)
        self._begin()
        if self._looking is None:
            self._looking = asyncio.create_task(self._look(), name="shares of KV caches")
        try:
            yield share
        finally:
            self._shares.discard(share)
            if not self._shares:
                self._looking.cancel()
                self._looking = None

    @property
    def _free(self) -> int:
        return self._budget - sum(share.bytes for share in self._shares)

    async def _look(self) -> None:
        while True:
            try:
                if not all(share.is_at_rest for share in self._shares):
                    await self._settle()
            except Exception:  # shares stay as they are until the next look
                log.exception("node.kv_not_shared")
            await self._clock.sleep(LOOK_SECONDS)

    async def _settle(self) -> None:
        """Asks what all need, has some give up what others lack, and gives it to them."""
        following = [share for share in self._shares if share.worker]
        await asyncio.gather(*(share.resize(share.target) for share in following))
        claims = {share: share.claim for share in self._shares}
        targets = divide(self._budget, claims, self._budget // _KEPT)
        lacking = sum(max(0, target - share.bytes) for share, target in targets.items())
        is_short = lacking > self._free
        giving = [
            one for one in following if targets[one] < one.bytes and (is_short or _rests(one))
        ]
        await asyncio.gather(*(share.resize(targets[share]) for share in giving))
        self._begin()
        for share in following:
            target = share.bytes + min(targets[share] - share.bytes, self._free)
            if target > max(share.bytes, share.target):
                await share.resize(target)

    def _begin(self) -> None:
        """Gives those that start what they were promised, if it is there."""
        for share in self._shares:
            if not share.has_all.is_set() and share.granted <= self._free:
                share.bytes = share.granted
                share.has_all.set()


def _rests(share: KvShare) -> bool:
    return share.worker is not None and not share.worker.running and share.bytes > share.granted
