"""Files as one caller has them: those of its tenant alone.

A gateway keeps files by itself, so that it has to ask who wants them: the control plane judges what
a caller shows, and says whose it is.
"""

import asyncio
from typing import IO

from sllm.gateway.control_planes import Caller
from sllm.gateway.exchange import Exchange
from sllm.gateway.files import FileStore, StoredFile, not_found


class OwnFiles:
    """The files that a caller may see. Belongs to the event loop; works in threads beside it."""

    def __init__(self, files: FileStore, caller: Caller) -> None:
        self._files = files
        self._caller = caller

    async def add(self, content: IO[bytes], name: str, purpose: str) -> StoredFile:
        """Keeps a file for the caller's tenant; see FileStore."""
        return await asyncio.to_thread(self._files.add, content, name, purpose, self._caller.tenant)

    async def get(self, file_id: str) -> StoredFile:
        """What there is of a file.

        Raises:
            errors.SourceNotFound: The caller has none of this id here.
        """
        found = await asyncio.to_thread(self._files.get, file_id)
        if not self._caller.sees(found.tenant):
            raise not_found(file_id)
        return found

    async def path(self, file_id: str) -> str:
        """Where a file lies; raises as `get` does."""
        found = await self.get(file_id)
        return str(await asyncio.to_thread(self._files.path, found.file_id))

    async def all(self) -> list[StoredFile]:
        """All of them, the latest first."""
        found = await asyncio.to_thread(self._files.all)
        return [one for one in found if self._caller.sees(one.tenant)]

    async def delete(self, file_id: str) -> None:
        """Forgets a file; raises as `get` does."""
        found = await self.get(file_id)
        await asyncio.to_thread(self._files.delete, found.file_id)


async def own_files(exchange: Exchange) -> OwnFiles:
    """The files of whoever asks.

    Raises:
        errors.Unauthenticated: It shows no key that is good.
        errors.SllmError: No control plane can be asked.
    """
    caller = await exchange.gateway.planes.ask(lambda client: client.caller())
    return OwnFiles(exchange.gateway.files, caller)
