"""One SQLite file that is ours alone, and is noticed to be there no more."""

import fcntl
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from sllm import errors

_BUSY_SECONDS: Final = 0.1
"""How long another program's lock is waited for: callers can try again better than a server can."""
_RETRY_SECONDS: Final = 1.0
_PASSING: Final = frozenset(
    {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}
)
"""Primary result codes of what an operator, or time, can put right while this process runs."""

_Identity = tuple[int, int]
"""Device and inode of a file."""


class Database:
    """A connection. Used by one thread at a time; its methods block."""

    def __init__(self, path: Path, schema: str) -> None:
        """Opens the file, or makes it, and keeps all other control planes off its directory.

        Raises:
            errors.StartFailed: Another control plane uses the directory; or the file is none of
                SQLite's, is damaged, or may not be written.
            OSError: There can be no such directory.
        """
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(path.parent)
        try:
            self._connection = _connect(path, schema)
            self._files = {one: _identity(one) for one in (path, _log_of(path))}
        except BaseException:
            os.close(self._lock)
            raise

    def execute(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        """All rows that a statement gives.

        Raises:
            errors.StateUnavailable: The file is gone, full, locked or damaged.
        """
        self.check()
        with self._typed_errors():
            return self._connection.execute(statement, values).fetchall()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything inside is stored, or nothing is.

        Raises:
            errors.StateUnavailable: Nothing is; see `execute`.
        """
        self.execute("BEGIN IMMEDIATE")
        try:
            yield
            self.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:  # a full disk may have ended it already
                self._connection.rollback()
            raise

    def check(self) -> None:
        """Looks whether the file is the one that was opened.

        SQLite writes on into a file that was removed, and nobody would find it there again.

        Raises:
            errors.StateUnavailable: It was removed, replaced or emptied.
        """
        try:
            gone = [one for one, opened in self._files.items() if _identity(one) != opened]
            emptied = not self.path.stat().st_size
        except OSError as error:
            raise self._lost(str(error)) from error
        if gone or emptied:
            raise self._lost("it is empty" if emptied else f"{gone[0].name} is another file")

    def close(self) -> None:
        """Lets others have the file."""
        self._connection.close()
        os.close(self._lock)

    @contextmanager
    def _typed_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            passing = _primary(error) in _PASSING
            advice = "try again" if passing else "restore it and restart the control plane"
            raise errors.StateUnavailable(
                f"{self.path} cannot be used: {error}; nothing was changed: {advice}",
                retry_after=_RETRY_SECONDS if passing else None,
            ) from error

    def _lost(self, what: str) -> errors.StateUnavailable:
        return errors.StateUnavailable(
            f"{self.path} was taken away under the control plane ({what}); nothing is stored any "
            "more: put the file back and restart the control plane, or restart it and deploy again"
        )


def _connect(path: Path, schema: str) -> sqlite3.Connection:
    try:
        connection = sqlite3.connect(
            path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")  # what is said must survive a power cut
        connection.executescript(schema)
    except sqlite3.Error as error:
        raise errors.StartFailed(
            f"{path} cannot be used: {error}; end what else uses it, restore it, or move it away "
            "to begin without deployments"
        ) from error
    return connection


def _lock(directory: Path) -> int:
    """Held by the open directory, and so given up however the process ends.

    Raises:
        errors.StartFailed: Another control plane holds it.
    """
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(fd)
        raise errors.StartFailed(
            f"another control plane uses {directory}; stop it, or give this one another --dir"
        ) from error
    return fd


def _identity(path: Path) -> _Identity:
    status = path.stat()
    return status.st_dev, status.st_ino


def _log_of(path: Path) -> Path:
    """Where SQLite writes first; what is there alone goes with it."""
    return path.with_name(f"{path.name}-wal")


def _primary(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
