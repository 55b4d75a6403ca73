"""A remote source as it was found: its small files are fetched, its weights can be read."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from sllm.checkpoint.format.manifest_file import MANIFEST_FILE
from sllm.checkpoint.format.safetensors_header import HEADER_LENGTH_BYTES, MAX_HEADER_BYTES
from sllm.checkpoint.remote.background_loop import BackgroundLoop, side_by_side
from sllm.checkpoint.remote.listing import Listing, RemoteFile
from sllm.checkpoint.remote.objects import Objects
from sllm.checkpoint.sources.file_names import is_small
from sllm.checkpoint.sources.other_forms import refuse_other_forms
from sllm.checkpoint.sources.small_files import check_small_together
from sllm.checkpoint.sources.sources import LocalSource, SourceFiles, find, inspect
from sllm.errors import CheckpointCorrupt, InvalidSource

_HEAD_BYTES = 256 << 10
"""Enough for the headers of most safetensors files."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A remote source at one moment."""

    url: str
    fingerprint: str
    """Names the state of its files."""
    listing: Listing
    objects: Objects
    loop: BackgroundLoop
    look_again: Callable[[], str]
    """The fingerprint as it is now."""
    of_model: bool = True
    """Whether it has to be a model's directory, or an adapter's."""

    def fetch(self, directory: Path, cancelled: Callable[[], bool]) -> SourceFiles:
        """Brings everything but the weights into a directory, and says what the source holds.

        Of every file of weights the directory gets its header alone, and a hole for the rest.

        Args:
            directory: empty.
            cancelled: asked now and then whether to stop.

        Raises:
            Cancelled: `cancelled` said so.
            SourceNotFound, SourceForbidden, SourceUnavailable: a file cannot be had.
            InvalidSource: it holds no model, or not in a form that can be read.
            CheckpointCorrupt: a file contradicts itself, or others; names it.
            OSError: the disk is full, or fails.
        """
        if MANIFEST_FILE not in self.listing.names:
            refuse_other_forms(self.url, self.listing.names)
        self.loop.run(self._fetch_all(directory), cancelled)
        try:
            found = (inspect if self.of_model else find)(LocalSource(directory))
        except (CheckpointCorrupt, InvalidSource) as error:
            raise self._named(error, directory) from error
        return replace(found, origin=self, fingerprint=self.fingerprint)

    def _named(
        self, error: CheckpointCorrupt | InvalidSource, directory: Path
    ) -> CheckpointCorrupt | InvalidSource:
        """The error, with the place where the file comes from."""
        metadata = {
            key: value.replace(str(directory), self.url) for key, value in error.metadata.items()
        }
        return type(error)(error.message.replace(str(directory), self.url), metadata=metadata)

    async def _fetch_all(self, directory: Path) -> None:
        small = (file.size for file in self.listing.files if is_small(file.name))
        check_small_together(self.url, small)
        await side_by_side(self._fetch_file(file, directory) for file in self.listing.files)

    async def _fetch_file(self, file: RemoteFile, directory: Path) -> None:
        if is_small(file.name):
            await self._fetch_small(file, directory)
        else:
            await self._fetch_head(file, directory)

    async def _fetch_small(self, file: RemoteFile, directory: Path) -> None:
        content = await self.objects.content(file)
        await asyncio.to_thread(_write, directory / file.name, content)

    async def _fetch_head(self, file: RemoteFile, directory: Path) -> None:
        """Of a partition nothing is needed: what is in it, the manifest tells."""
        head = b""
        if file.name.endswith(".safetensors"):
            head = await self.objects.content(file, min(file.size, _HEAD_BYTES))
            length = HEADER_LENGTH_BYTES + int.from_bytes(head[:HEADER_LENGTH_BYTES], "little")
            if len(head) < length <= min(file.size, MAX_HEADER_BYTES):
                head = await self.objects.content(file, length)
        with (directory / file.name).open("wb") as written:
            written.write(head)
            written.truncate(file.size)

    def open(self, weights: Sequence[Path], cancelled: Callable[[], bool]) -> "RemoteReader":
        """A reader of the weights."""
        return RemoteReader(self, cancelled)

    def current_fingerprint(self) -> str:
        """The fingerprint as it is now.

        Raises:
            SourceNotFound, SourceForbidden, SourceUnavailable: the source cannot be had now.
        """
        return self.look_again()


class RemoteReader:
    """Reads a snapshot's weights. Any number of threads may read."""

    def __init__(self, snapshot: Snapshot, cancelled: Callable[[], bool]) -> None:
        self._snapshot = snapshot
        self._cancelled = cancelled
        self._files = {file.name: file for file in snapshot.listing.files}

    def read_into(self, memory: memoryview, file: Path, offset: int) -> None:
        """Fills `memory` with a file's bytes from `offset` on.

        Raises:
            Cancelled: the import is to end.
            SourceNotFound, SourceForbidden, SourceUnavailable, InvalidSource: it cannot be had.
        """
        read = self._snapshot.objects.read(self._files[file.name], offset, memory)
        self._snapshot.loop.run(read, self._cancelled)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Nothing is held between two reads."""


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
