"""How checkpoints leave the tiers: because somebody asks for it, or has deleted their files."""

import errno
from collections.abc import Callable
from functools import partial

from sllm.errors import CheckpointLeased, CheckpointNotFound, CheckpointUnreadable
from sllm.node.tiers.checkpoints import Checkpoint
from sllm.node.tiers.dram import DramTier
from sllm.node.tiers.ledger import Holding
from sllm.node.tiers.ssd import SsdTier
from sllm.node.tiers.ssd_files import delete_all
from sllm.node.tiers.types import Tier
from sllm.node.transfers.loads import Threads
from sllm.node.transfers.reads import Reads


class Removal:
    """Takes checkpoints out of SSD and DRAM. What makes room for others is the tiers' own."""

    def __init__(
        self,
        ssd: SsdTier,
        dram: DramTier,
        reads: Reads,
        threads: Threads,
        changed: Callable[[], None],
    ) -> None:
        """`changed` is called after every change of contents."""
        self._ssd = ssd
        self._dram = dram
        self._reads = reads
        self._threads = threads
        self._changed = changed

    async def evict(self, digest: str, tier: Tier) -> None:
        """Frees a checkpoint's room on a tier; the pool's copy goes with the one on SSD.

        Raises:
            CheckpointNotFound: the tier does not hold it.
            CheckpointLeased: it is in use, or being loaded.
        """
        copy = self._ssd.copies.get(digest)
        dram = self._dram.copies.get(digest)
        if tier is Tier.SSD and copy is not None:
            _check_idle(digest, copy.holding)
            self._forget(digest)
            await self._threads.run(partial(delete_all, self._ssd.take_removed()))
        elif tier is Tier.DRAM and dram is not None:
            _check_idle(digest, dram.holding)
            self._dram.evict(digest)
            self._changed()
        elif tier is Tier.DRAM and digest in self._reads.loads:
            raise CheckpointLeased(f"checkpoint {digest} is being loaded")
        else:
            raise CheckpointNotFound(f"the {tier.name} tier does not hold checkpoint {digest}")

    async def is_there(self, held: Checkpoint) -> bool:
        """Whether a copy's small files are where they were: a start reads them.

        A copy whose directory somebody has deleted is forgotten, so that it is imported anew.

        Raises:
            CheckpointUnreadable: it is in use.
        """
        if await self._threads.run(held.directory.is_dir):
            return True
        if not await self._threads.run(self._ssd.directory.is_dir):
            self._ssd.refused(FileNotFoundError(errno.ENOENT, "gone"))
        digest = held.manifest.digest
        copies = [one[digest] for one in (self._ssd.copies, self._dram.copies) if digest in one]
        if any(copy.holding.leases for copy in copies):
            self._changed()
            raise CheckpointUnreadable(
                f"{held.directory} is gone, and with it the files of a model that is in use: "
                "restart the node, which then fetches what it lacks"
            )
        self._forget(digest)
        return False

    def _forget(self, digest: str) -> None:
        """Drops the copies of a checkpoint, on SSD and in the pool, that nobody uses."""
        # What the pool has of it reads its small files in the directory that goes.
        self._dram.evict(digest)
        if digest in self._ssd.copies:
            for made in self._ssd.made_of(digest):
                self._drop_idle(made, digest)
            self._ssd.ledger.remove(digest)
            self._ssd.detach(digest)
        self._changed()  # before the disk is done: nobody finds it from now on

    def _drop_idle(self, digest: str, made_of: str) -> None:
        """What was made ready of a checkpoint goes with it, unless it is in use, or of others."""
        dram = self._dram.copies.get(digest)
        if self._ssd.copies[digest].holding.leases or (dram and dram.holding.leases):
            return
        if self._ssd.forget_made_of(digest, made_of):
            return
        self._dram.evict(digest)
        self._ssd.ledger.remove(digest)
        self._ssd.detach(digest)


def _check_idle(digest: str, holding: Holding) -> None:
    if holding.leases:
        raise CheckpointLeased(
            f"checkpoint {digest} is in use or held: end the instances that serve it, or unpin it"
        )
