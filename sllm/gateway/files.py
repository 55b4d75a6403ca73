"""Files that callers upload for batches: kept by this gateway for a while."""

import json
import re
import shutil
import tempfile
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Final

from sllm import errors

_ID: Final = re.compile(r"file-[0-9a-f]{32}")
KEPT_SECONDS: Final = 30 * 24 * 3600.0
"""After which a file is forgotten, as batches are."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file, and what was said of it."""

    file_id: str
    name: str
    purpose: str
    size_bytes: int
    created_at: float
    """Seconds since the epoch."""


class FileStore:
    """Files in a directory. Blocks: it is for threads beside the event loop.

    Gateways that share a directory share their files.
    """

    def __init__(self, directory: Path | None, most_bytes: int) -> None:
        """`directory`: None: one that goes with the gateway. `most_bytes`: of all files."""
        self._given = directory
        self._made: Path | None = None
        self._most_bytes = most_bytes

    def add(self, content: IO[bytes], name: str, purpose: str) -> StoredFile:
        """Keeps a file.

        Raises:
            errors.NoCapacity: There is no room for it.
            OSError: It cannot be written.
        """
        self._forget_old()
        size = content.seek(0, 2)
        content.seek(0)
        if self._used() + size > self._most_bytes:
            raise errors.NoCapacity(
                f"files may have {self._most_bytes} bytes together; delete some that are done with"
            )
        found = StoredFile(f"file-{uuid.uuid4().hex}", name, purpose, size, time.time())
        with self._path(found.file_id).open("xb") as kept:
            shutil.copyfileobj(content, kept, 1 << 20)
        self._path(found.file_id, ".json").write_text(json.dumps(asdict(found)))
        return found

    def get(self, file_id: str) -> StoredFile:
        """What there is of a file.

        Raises:
            errors.SourceNotFound: There is none of this id here.
        """
        if not _ID.fullmatch(file_id):
            raise _not_found(file_id)
        try:
            return StoredFile(**json.loads(self._path(file_id, ".json").read_text()))
        except FileNotFoundError as error:
            raise _not_found(file_id) from error

    def path(self, file_id: str) -> Path:
        """Where a file lies.

        Raises:
            errors.SourceNotFound: There is none of this id here.
        """
        return self._path(self.get(file_id).file_id)

    def all(self) -> list[StoredFile]:
        """All files, the latest first."""
        found = [self.get(path.stem) for path in self._directory().glob("file-*.json")]
        return sorted(found, key=lambda one: -one.created_at)

    def delete(self, file_id: str) -> None:
        """Forgets a file.

        Raises:
            errors.SourceNotFound: There is none of this id here.
        """
        self.get(file_id)
        for path in (self._path(file_id, ".json"), self._path(file_id)):
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Removes what goes with the gateway."""
        if self._made:
            shutil.rmtree(self._made, ignore_errors=True)
            self._made = None

    def _used(self) -> int:
        return sum(one.size_bytes for one in self.all())

    def _forget_old(self) -> None:
        until = time.time() - KEPT_SECONDS
        for one in self.all():
            if one.created_at < until:
                self.delete(one.file_id)

    def _path(self, file_id: str, suffix: str = ".bin") -> Path:
        return self._directory() / f"{file_id}{suffix}"

    def _directory(self) -> Path:
        if self._given:
            self._given.mkdir(parents=True, exist_ok=True)
            return self._given
        self._made = self._made or Path(tempfile.mkdtemp(prefix="sllm-gateway-"))
        return self._made


def _not_found(file_id: str) -> errors.SourceNotFound:
    return errors.SourceNotFound(f"there is no file {file_id!r:.80} at this gateway")
