"""Files that callers upload for batches: kept by this gateway for a while."""

import fcntl
import json
import math
import re
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Final

from sllm import errors
from sllm.gateway.own_directory import OwnDirectory

_ID: Final = re.compile(r"file-[0-9a-f]{32}")
KEPT_SECONDS: Final = 30 * 24 * 3600.0
"""After which a file is forgotten, as batches are."""
_SHARED: Final = "default"
"""The tenant of a cluster that has no others, and of those who run it."""
_UNTOLD_SECONDS: Final = 3600.0
"""After which nobody is about to tell what a file is."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file, and what was said of it."""

    file_id: str
    name: str
    purpose: str
    size_bytes: int
    created_at: float
    """Seconds since the epoch."""
    tenant: str = _SHARED
    """Whose it is."""


class FileStore:
    """Files in a directory. Blocks: it is for threads beside the event loop.

    Gateways that share a directory share their files.
    """

    def __init__(self, directory: Path | None, most_bytes: int) -> None:
        """`directory`: None: one that goes with the gateway. `most_bytes`: of all files."""
        self._given = directory
        self._made: OwnDirectory | None = None
        self._making = threading.Lock()
        self._most_bytes = most_bytes

    def add(self, content: IO[bytes], name: str, purpose: str, tenant: str = _SHARED) -> StoredFile:
        """Keeps a file of a tenant.

        Raises:
            errors.NoCapacity: There is no room for it.
            OSError: It cannot be written.
        """
        size = content.seek(0, 2)
        content.seek(0)
        file_id = f"file-{uuid.uuid4().hex}"
        found = StoredFile(file_id, name, purpose, size, time.time(), tenant)
        kept, told = self._path(found.file_id), self._path(found.file_id, ".json")
        self._reserve(kept, size, tenant)
        try:
            with kept.open("r+b") as file:
                shutil.copyfileobj(content, file, 1 << 20)
            written = self._path(found.file_id, ".tmp")
            written.write_text(json.dumps(asdict(found)))
            written.replace(told)  # as a whole: others may be reading
        except BaseException:
            self._remove(found.file_id)
            raise
        return found

    def get(self, file_id: str) -> StoredFile:
        """What there is of a file.

        Raises:
            errors.SourceNotFound: There is none of this id here.
        """
        if not _ID.fullmatch(file_id):
            raise not_found(file_id)
        try:
            return StoredFile(**json.loads(self._path(file_id, ".json").read_text()))
        except (FileNotFoundError, ValueError, TypeError) as error:
            raise not_found(file_id) from error

    def path(self, file_id: str) -> Path:
        """Where a file lies.

        Raises:
            errors.SourceNotFound: There is none of this id here.
        """
        return self._path(self.get(file_id).file_id)

    def all(self) -> list[StoredFile]:
        """All files, the latest first. What goes meanwhile is none."""
        found = []
        for path in self._directory().glob("file-*.json"):
            with suppress(errors.SourceNotFound):
                found.append(self.get(path.stem))
        return sorted(found, key=lambda one: -one.created_at)

    def delete(self, file_id: str) -> None:
        """Forgets a file.

        Raises:
            errors.SourceNotFound: There is none of this id here.
        """
        self._remove(self.get(file_id).file_id)

    def close(self) -> None:
        """Removes what goes with the gateway."""
        with self._making:
            made, self._made = self._made, None
        if made:
            made.remove()

    def _check_room(self, size: int, tenant: str) -> None:
        """A tenant beside others may have as much as it leaves: so none fills all there is."""
        free = self._most_bytes - self._used() - size
        if free < 0:
            most = f"files may have {self._most_bytes} bytes together"
            raise errors.NoCapacity(f"{most}; delete some that are done with")
        own = sum(one.size_bytes for one in self.all() if one.tenant == tenant)
        if tenant != _SHARED and own + size > free:
            raise errors.NoCapacity(
                f"files of tenant {tenant} have {own} bytes, and may have as many as are left for "
                f"others, {free} with this one; delete some that are done with"
            )

    def _reserve(self, path: Path, size: int, tenant: str) -> None:
        """Makes an empty file of a size, which counts before its bytes are there."""
        with self._locked():
            self._forget_old()
            self._check_room(size, tenant)
            with path.open("xb") as file:
                file.truncate(size)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone, among this gateway's threads and gateways that share the directory."""
        with (self._directory() / ".lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _used(self) -> int:
        return sum(_size(one) for one in self._directory().glob("file-*.bin"))

    def _forget_old(self) -> None:
        """Removes what is past its time, and what was left by those who did not come to its end."""
        now = time.time()
        for one in self.all():
            if one.created_at < now - KEPT_SECONDS:
                self._remove(one.file_id)
        for pattern in ("file-*.bin", "file-*.tmp"):
            for path in self._directory().glob(pattern):
                told = path.with_suffix(".json")
                if _changed(path) < now - _UNTOLD_SECONDS and not _size(told):
                    self._remove(path.stem)

    def _remove(self, file_id: str) -> None:
        for suffix in (".json", ".bin", ".tmp"):
            self._path(file_id, suffix).unlink(missing_ok=True)

    def _path(self, file_id: str, suffix: str = ".bin") -> Path:
        return self._directory() / f"{file_id}{suffix}"

    def _directory(self) -> Path:
        if self._given:
            self._given.mkdir(parents=True, exist_ok=True)
            return self._given
        with self._making:
            if self._made is None:
                self._made = OwnDirectory(Path(tempfile.gettempdir()))
            return self._made.path


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return math.inf


def not_found(file_id: str) -> errors.SourceNotFound:
    """What is said of a file that is not there, or is another's."""
    return errors.SourceNotFound(f"there is no file {file_id!r:.80} at this gateway")
