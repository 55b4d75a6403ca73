"""One checkpoint's load onto a device, from whichever tier below has it."""

from contextlib import ExitStack
from functools import partial

import structlog

from sllm.checkpoint.format.manifest import corrupt
from sllm.clock import Clock
from sllm.errors import ModelTooLarge, NoCapacity
from sllm.node.device.copies import Copies, DeviceCopy
from sllm.node.device.copy_thread import CopyJob
from sllm.node.device.interface import WeightsWish
from sllm.node.device.layout import Layout, lay_out
from sllm.node.device.memory import Allocation
from sllm.node.device.upload import Upload
from sllm.node.store.healing import healed
from sllm.node.store.lease import Lease
from sllm.node.store.tier_store import TierStore
from sllm.node.tiers import metrics
from sllm.node.tiers.pool import Pool
from sllm.node.tiers.types import Tier
from sllm.node.transfers.loads import Load, Tell
from sllm.node.transfers.work import LoadPhase, Progress, Step

_log = structlog.get_logger()


class Loader:
    """Carries loads out. Belongs to the event loop."""

    def __init__(self, store: TierStore, pool: Pool, copies: Copies, clock: Clock) -> None:
        """Of a device's `copies`, over a store and its pool, which is pinned."""
        self._store = store
        self._pool = pool
        self._copies = copies
        self._clock = clock

    async def reach(self, wish: WeightsWish, digest: str | None, tell: Tell) -> Lease:
        """A lease below, on SSD, or in the pool for what is not there.

        An import that this takes brings it into the pool in the same pass, if it has room there.

        Raises:
            SllmError: as `TierStore.promote`.
        """
        first, then = (Tier.SSD, Tier.DRAM) if self._is_on_ssd(digest) else (Tier.DRAM, Tier.SSD)
        try:
            return await self._promote(wish, first, tell)
        except (NoCapacity, ModelTooLarge) as error:
            try:
                return await self._promote(wish, then, tell)
            except (NoCapacity, ModelTooLarge) as other:
                raise error from other  # the first choice says best what is lacking

    async def bring(self, wish: WeightsWish, digest: str, load: Load[DeviceCopy]) -> DeviceCopy:
        """The copy, once it is here whole.

        If a copy below turns out to be corrupt, it is imported again, once.

        Raises:
            SllmError: as `Seat.bring_up`.
        """

        async def again() -> DeviceCopy:
            load.report(0, load.progress.total_bytes)
            return await self._bring(wish, digest, load)

        return await healed(
            partial(self._bring, wish, digest, load),
            again,
            # A copy that was not set aside is not the store's own: there is no other.
            is_replaceable=lambda: not self._store.holds(digest),
        )

    def _is_on_ssd(self, digest: str | None) -> bool:
        copies = self._store.copies()
        return any(copy.tier is Tier.SSD and copy.digest == digest for copy in copies)

    async def _promote(
        self, wish: WeightsWish, tier: Tier, tell: Tell, sink: Upload | None = None
    ) -> Lease:
        return await self._store.promote(
            wish.source, wish.dtype, tier, tell, pack=wish.pack, sink=sink, peers=wish.peers
        )

    async def _bring(self, wish: WeightsWish, digest: str, load: Load[DeviceCopy]) -> DeviceCopy:
        with ExitStack() as held:
            below = await self.reach(wish, digest, _ignore)
            held.callback(below.release)
            _check_same(below, digest)
            layout = lay_out(below.manifest)
            async with self._copies.allocated(below.record, layout.size_bytes) as memory:
                steps = await self._fill(wish, below, layout, memory, load)
                copy = self._copies.land(below.checkpoint, layout, memory, steps)
                load.land(copy.holding)
            return copy

    async def _fill(
        self,
        wish: WeightsWish,
        below: Lease,
        layout: Layout,
        memory: Allocation,
        load: Load[DeviceCopy],
    ) -> tuple[Step, ...]:
        began = self._clock.now()
        job = CopyJob(priority=lambda: load.priority, advance=load.advance)
        upload = Upload(self._pool, self._copies.memory.copies, job, layout, memory.address)
        try:
            before = await self._feed(wish, below, upload)
            await upload.finish()
        except BaseException:
            await upload.give_up()
            raise
        ended = self._clock.now()
        _log.info("device.loaded", digest=below.digest, seconds=round(ended - began, 3))
        metrics.record_load("copy", below.size_bytes, ended - began)
        copied = Step(LoadPhase.COPY, began, ended - began, below.size_bytes)
        return (*before, copied)

    async def _feed(self, wish: WeightsWish, below: Lease, upload: Upload) -> tuple[Step, ...]:
        """Hands all chunks to `upload`, those that have to be read as they come."""
        if below.chunks:
            upload.feed(below.chunks)
            await upload.settle()
            return ()
        try:
            whole = await self._promote(wish, Tier.DRAM, _ignore, upload)
        except (NoCapacity, ModelTooLarge):
            return (await self._store.pass_through(below, upload),)
        try:
            _check_same(whole, below.digest)
            upload.feed(whole.chunks)
            await upload.settle()
            return whole.steps
        except BaseException:
            await upload.give_up()
            raise
        finally:
            whole.release()


def _check_same(lease: Lease, digest: str) -> None:
    if lease.digest != digest:
        raise corrupt(lease.directory, "was changed while it was loaded; try again")


def _ignore(_: Progress) -> None:
    return None
