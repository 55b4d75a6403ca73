"""What other nodes have made of checkpoints for engines, fetched in the place of making it here.

It is taken in as what was made here would be: within the same room, and only if it is of the same
checkpoint, for the same engine on the same kind of processor. Each part is held against the digest
that the control plane has named.
"""

import asyncio
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final

import structlog

from sllm.checkpoint.format.form import expect_form, is_of_form
from sllm.errors import Cancelled, CheckpointCorrupt, CheckpointNotFound
from sllm.node.peers.copying import Copying
from sllm.node.peers.manifests import CopyTerms
from sllm.node.peers.types import FormPeers, Network
from sllm.node.store.ready_made import ReadyMade
from sllm.node.tiers.checkpoints import SourceRecord
from sllm.node.transfers.loads import Threads

_NOT_HAD: Final = (CheckpointCorrupt, CheckpointNotFound, OSError)

_log = structlog.get_logger()


class FormsFromPeers:
    """Belongs to the event loop."""

    def __init__(self, shelf: ReadyMade, network: Network | None, chunk_bytes: int) -> None:
        """Fetches nothing yet.

        Args:
            shelf: takes them in.
            network: leads to other nodes. None: nothing is had from them.
            chunk_bytes: of chunks as the pool has them.
        """
        self._shelf = shelf
        self._network = network
        # Of its own: it gives way to all else from its first copy on, and others must not.
        self._threads = Threads(1)
        self._chunk_bytes = chunk_bytes
        self._copying: Copying | None = None

    async def fetch(self, record: SourceRecord, offered: Sequence[FormPeers], room: int) -> bool:
        """Fetches what was made ready, if any node has just that; whether it is here now.

        Args:
            record: the source, with what it is to be made ready for, and of which checkpoint.
            offered: what other nodes have made.
            room: bytes that there are for it on SSD.

        Raises:
            ModelTooLarge, NoCapacity: there is no such room.
        """
        try:
            for one in offered:
                if one.form == record.form and await self._fetch(record, one, room):
                    return True
        except Cancelled:
            _log.info("ready_made.fetch_given_up", form=record.form)
        return False

    async def _fetch(self, record: SourceRecord, offered: FormPeers, room: int) -> bool:
        if self._network is None:
            return False
        terms = CopyTerms(self._chunk_bytes, room, is_of_form)
        copying = self._copying = Copying(self._network, offered.peers, terms)
        try:
            async with self._shelf.making(room) as directory:
                write = partial(_write, copying, directory, record)
                await self._threads.run_to_end(write, copying.end)
                await self._shelf.add(record, directory, room)
        except _NOT_HAD as error:
            _log.info("ready_made.not_fetched", form=record.form, problem=str(error))
            return False
        finally:
            self._copying = None
        _log.info("ready_made.fetched", digest=record.made_of, form=record.form)
        return True

    def end(self) -> None:
        """Gives up what is being fetched."""
        if self._copying is not None:
            self._copying.end()

    async def close(self) -> None:
        """Gives up what is being fetched, and fetches nothing more."""
        self._threads.stop()
        self.end()
        await asyncio.to_thread(self._threads.close)


def _write(copying: Copying, directory: Path, record: SourceRecord) -> None:
    copying.write(directory)
    expect_form(directory, record.form, record.made_of)
