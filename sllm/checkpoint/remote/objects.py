"""Reads files of one directory of an object store or web server, through obstore."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import obstore

from sllm.checkpoint.remote.background_loop import side_by_side
from sllm.checkpoint.remote.failures import typed_failures
from sllm.checkpoint.remote.listing import RemoteFile
from sllm.checkpoint.sources.small_files import check_small
from sllm.errors import SourceNotFound, SourceUnavailable

if TYPE_CHECKING:
    from obstore import GetOptions, ObjectMeta
    from obstore.store import ObjectStore

_STREAM_BYTES = 1 << 20
"""Taken from a connection at once."""
_ATTEMPTS = 4
"""At a range, of answers that end early and seem whole; the library retries what it sees fail."""
_NO_TIME = datetime.fromtimestamp(0, UTC)
"""What obstore gives where a server does not say when a file was changed."""


class Objects:
    """The files of a directory. Its coroutines may run side by side."""

    def __init__(self, url: str, store: "ObjectStore", concurrency: int) -> None:
        """Opens nothing yet.

        Args:
            url: the directory's, without secrets.
            store: obstore's, with the directory as its prefix.
            concurrency: questions asked at once by `find` and `sizes_of`.
        """
        self.url = url.rstrip("/")
        self._store = store
        self._slots = asyncio.Semaphore(concurrency)

    def place(self, name: str) -> str:
        """A file's URL, for errors."""
        return f"{self.url}/{name}"

    async def list_all(self) -> list[RemoteFile]:
        """The files right in the directory.

        Raises:
            SourceNotFound: there are none, or no such bucket.
            SourceForbidden, SourceUnavailable: as they say.
        """
        with typed_failures(self.url):
            found = await obstore.list_with_delimiter_async(self._store)
        files = [_file(meta["path"].rpartition("/")[2], meta) for meta in found["objects"]]
        if not files:
            raise SourceNotFound(f"{self.url} holds no files: check its spelling")
        return files

    async def find(self, names: Sequence[str]) -> list[RemoteFile]:
        """Those of these files that are there: for servers that give no lists.

        Raises:
            SourceForbidden, SourceUnavailable: as they say.
        """
        found = await side_by_side(self._try_head(name) for name in names)
        return [file for file in found if file is not None]

    async def _try_head(self, name: str) -> RemoteFile | None:
        async with self._slots:
            try:
                with typed_failures(self.place(name)):
                    meta = await obstore.head_async(self._store, name)
            except SourceNotFound:
                return None
            return _file(name, meta)

    async def read(self, file: RemoteFile, start: int, memory: memoryview) -> None:
        """Fills `memory` with a file's bytes from `start` on.

        Raises:
            SourceNotFound: it is gone.
            SourceUnavailable: it was changed, or cannot be had within the bounds of the options.
            InvalidSource: the server gives no ranges.
            SourceForbidden: as it says.
        """
        done = 0
        for _ in range(_ATTEMPTS):
            if done == len(memory):
                return
            with typed_failures(self.place(file.name)):
                done += await self._read_on(file, start + done, memory[done:])
        if done < len(memory):
            raise SourceUnavailable(
                f"{self.place(file.name)}: its server keeps ending answers early, at byte "
                f"{start + done} of {file.size}; try again, or another server"
            )

    async def _read_on(self, file: RemoteFile, start: int, memory: memoryview) -> int:
        """Fills the front of `memory`, if the server leaves it at that; returns how many bytes."""
        options: GetOptions = {"range": (start, start + len(memory))}
        answer = await obstore.get_async(self._store, file.name, options=options)
        self._check_same(file, _file(file.name, answer.meta))
        done = 0
        async for piece in answer.stream(min_chunk_size=_STREAM_BYTES):
            if done + len(piece) > len(memory):
                raise SourceUnavailable(f"{self.place(file.name)}: more came than was asked for")
            memory[done : done + len(piece)] = piece
            done += len(piece)
        return done

    def _check_same(self, file: RemoteFile, found: RemoteFile) -> None:
        changed = file.tag is not None and found.tag != file.tag
        if changed or found.size != file.size:
            raise SourceUnavailable(
                f"{self.place(file.name)} has {found.size} bytes and the tag {found.tag} instead "
                f"of {file.size} and {file.tag}: it was changed while it was read; try again"
            )

    async def content(self, file: RemoteFile, size: int | None = None) -> bytes:
        """All of a small file, or its first `size` bytes.

        Raises:
            SourceNotFound, SourceUnavailable, SourceForbidden, InvalidSource: as `read`; or it is
                too large for a small one, whatever it says of itself.
        """
        size = file.size if size is None else size
        check_small(self.place(file.name), size)
        memory = bytearray(size)
        async with self._slots:
            await self.read(file, 0, memoryview(memory))
        return bytes(memory)


def _file(name: str, meta: "ObjectMeta") -> RemoteFile:
    changed = meta["last_modified"]
    # Some servers have tags in quotes when they serve a file, and without when they list it.
    tag = (meta["e_tag"] or "").strip('"') or (None if changed == _NO_TIME else changed.isoformat())
    return RemoteFile(name, meta["size"], tag)
