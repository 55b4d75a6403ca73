"""In which order models use their weights: kept beside a checkpoint once one has run here."""

from functools import partial

from sllm.node.tiers import first_use
from sllm.node.tiers.first_use import FirstUse
from sllm.node.tiers.ssd import SsdCopy, SsdTier
from sllm.node.transfers.loads import Threads


class FirstUses:
    """What is known of the checkpoints on SSD. Belongs to the event loop."""

    def __init__(self, ssd: SsdTier, threads: Threads) -> None:
        self._ssd = ssd
        self._threads = threads

    def of(self, digest: str) -> FirstUse | None:
        """In which order a model uses a checkpoint. None: it is not on SSD, or has not run."""
        copy = self._ssd.copies.get(digest)
        return copy.first_use if copy else None

    def is_lacking(self, digest: str) -> bool:
        """Whether a checkpoint is on SSD of which no model has run here yet."""
        copy = self._ssd.copies.get(digest)
        return copy is not None and copy.first_use is None

    async def note(self, digest: str, use: FirstUse) -> None:
        """Keeps in which order a model uses a checkpoint, if that is on SSD and not known yet.

        Raises:
            ValueError: it does not tell of each tensor of the checkpoint once.
        """
        copy = self._ssd.copies.get(digest)
        if copy is None or copy.first_use is not None:
            return  # another instance has told it, or what is known now is distrusted
        first_use.check(use, copy.manifest)
        await self._keep(copy, use)

    async def distrust(self, digest: str) -> None:
        """Has all of a checkpoint be there before anything is made of it, from now on.

        As of a model that has read weights before they were there.
        """
        copy = self._ssd.copies.get(digest)
        if copy is not None and copy.first_use is not None:
            await self._keep(copy, copy.first_use.never_early())

    async def _keep(self, copy: SsdCopy, use: FirstUse) -> None:
        copy.first_use = use
        await self._threads.run(partial(first_use.write, copy.directory, use))
