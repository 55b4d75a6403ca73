"""One checkpoint's way from the pool into its allocation on a device."""

import asyncio
from collections.abc import Callable

from sllm.node.device.copy_thread import ChunkCopy, CopyJob, CopyThread
from sllm.node.device.layout import Layout
from sllm.node.tiers.dram import Chunks
from sllm.node.tiers.pool import Pool
from sllm.node.transfers.work import nothing


class Upload:
    """See `Sink`. A chunk that comes a second time is not copied again."""

    def __init__(
        self, pool: Pool, copies: CopyThread, job: CopyJob, layout: Layout, base: int
    ) -> None:
        """Prepares the way.

        Args:
            pool: where chunks come from; pinned.
            copies: carries them.
            job: the load's copies.
            layout: where they go, in the allocation.
            base: address of the allocation.
        """
        self._pool = pool
        self._copies = copies
        self._job = job
        self._layout = layout
        self._base = base
        self._taken: set[int] = set()

    def landed(self, index: int, chunk: int, copied: Callable[[], None] = nothing) -> None:
        """See `Sink.landed`."""
        target = self._layout.chunks[index]
        source = self._pool.address_of(chunk)
        self._taken.add(index)
        copy = ChunkCopy(source, self._base + target.offset, target.size, copied)
        self._copies.add(self._job, [copy])

    def feed(self, chunks: Chunks) -> None:
        """Copies a checkpoint that is whole in the pool, but for chunks that have landed before."""
        places = [chunk for partition in chunks for chunk in partition]
        for index, chunk in enumerate(places):
            if index not in self._taken:
                self.landed(index, chunk)

    async def settle(self) -> None:
        """See `Sink.settle`. Who is cancelled meanwhile goes on only when no copy is under way."""
        settling = asyncio.ensure_future(self._copies.settle(self._job))
        try:
            await asyncio.shield(settling)
        except asyncio.CancelledError:
            self._copies.stop(self._job)
            await asyncio.wait([settling])
            raise

    async def finish(self) -> None:
        """Returns once everything that was taken is on the device.

        Raises:
            DeviceFailed: CUDA has failed.
        """
        await self._copies.finish(self._job)

    async def give_up(self) -> None:
        """Copies nothing more; returns when no copy is under way."""
        self._copies.stop(self._job)
        await self.settle()
