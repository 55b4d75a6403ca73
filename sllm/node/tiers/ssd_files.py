"""What lies in the SSD tier's directory, told by its name, and how it is put there and removed."""

import errno
import fcntl
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import structlog
import xxhash

from sllm.checkpoint.format.manifest import is_digest
from sllm.errors import InvalidArgument
from sllm.node.tiers.checkpoints import SourceRecord
from sllm.node.tiers.disk_refusals import REFUSALS

_LOCK_FILE = ".lock"
_SOURCES_FILE = ".sources.json"
_PARTIAL = ".partial-"
_REMOVED = ".removed-"
_QUARANTINED = ".quarantined-"
STAGED = ".staged-"
"""Prefix of the directories that hold small files of remote sources."""

PARTIAL_SECONDS = 24 * 3600.0
"""How long a half-written checkpoint is kept if nobody asks for it."""

_log = structlog.get_logger()


def lock(directory: Path) -> int:
    """Takes the directory for this process. The open file holds the lock, and ends with it.

    Raises:
        InvalidArgument: another process uses the directory.
        OSError: the disk takes no file, or fails.
    """
    fd = os.open(directory / _LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(fd)
        raise InvalidArgument(f"another node agent uses {directory}; give each its own") from error
    return fd


def checkpoints(directory: Path) -> list[Path]:
    """Directories that are named as checkpoints are, the one used last at the end.

    Others are not the tier's business.
    """
    found = (path for path in _entries(directory) if is_digest(path.name) and path.is_dir())
    return sorted(found, key=_age)


def partials(directory: Path) -> list[Path]:
    """Half-written checkpoints."""
    found = (path for path in _entries(directory) if path.name.startswith(_PARTIAL))
    return sorted(found, key=_age)


def partial_name(record: SourceRecord) -> str:
    """The name of a source's half-written checkpoint: by it, another process finds it again."""
    return _PARTIAL + xxhash.xxh3_128_hexdigest(json.dumps(asdict(record)).encode())


def leftovers(directory: Path) -> Iterator[Path]:
    """What a kill has left behind, but for half-written checkpoints that are young enough."""
    oldest = time.time() - PARTIAL_SECONDS
    yield from (path for path in partials(directory) if _last_written(path) < oldest)
    prefixes = (_REMOVED, _QUARANTINED, STAGED)
    yield from (path for path in _entries(directory) if path.name.startswith(prefixes))


def new_removed(directory: Path) -> Path:
    """A name for what is to be deleted, or for what a kill may leave without being of use."""
    return directory / f"{_REMOVED}{uuid.uuid4().hex}"


def new_quarantined(directory: Path) -> Path:
    """A name for a copy that is not what it should be."""
    return directory / f"{_QUARANTINED}{uuid.uuid4().hex}"


def move(path: Path, to: Path) -> Path | None:
    """Renames a directory; None if the disk refuses it, or somebody has deleted it."""
    try:
        return path.rename(to)
    except OSError as error:
        if error.errno not in REFUSALS | {errno.ENOENT}:
            raise
        _log.warning("node.not_moved", path=str(path), problem=str(error))
        return None


def delete(directory: Path) -> None:
    """Removes a directory. If that fails now, it is tried again when the tier is next opened."""
    try:
        shutil.rmtree(directory)
    except OSError as error:
        _log.warning("node.not_deleted", path=str(directory), problem=str(error))


def delete_all(directories: Sequence[Path]) -> None:
    """Deletes each of them."""
    for directory in directories:
        delete(directory)


def disk_bytes(directory: Path) -> int:
    """What the files in a directory take, as far as it can be read."""
    return sum(file.stat().st_blocks * 512 for file in _entries(directory))


def touch(directory: Path) -> None:
    """Makes a checkpoint the one used last. On a disk that refuses it the order stays as it was."""
    try:
        os.utime(directory)
    except OSError as error:
        if error.errno not in REFUSALS:
            raise


def write_sources(directory: Path, records: Sequence[SourceRecord]) -> None:
    """Writes which sources lead to a checkpoint. If that is lost, they are imported once more."""
    path = directory / _SOURCES_FILE
    temporary = path.with_suffix(".new")
    try:
        temporary.write_text(json.dumps([asdict(record) for record in records]))
        temporary.rename(path)
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        _log.warning("node.sources_not_kept", directory=str(directory), problem=str(error))


def read_sources(directory: Path) -> Iterator[SourceRecord]:
    """What leads to a checkpoint, as far as it was kept."""
    try:
        for record in json.loads((directory / _SOURCES_FILE).read_bytes()):
            yield SourceRecord(**record)
    except (OSError, ValueError, TypeError) as error:
        _log.info("node.sources_unknown", directory=str(directory), problem=str(error))


def _entries(directory: Path) -> Iterator[Path]:
    try:
        return iter(list(directory.iterdir()))
    except OSError as error:
        _log.warning("node.not_listed", directory=str(directory), problem=str(error))
        return iter(())


def _last_written(directory: Path) -> float:
    """By the wall clock; 0 if nothing was, or nobody may know."""
    return max((file.stat().st_mtime for file in _entries(directory)), default=0.0)


def _age(directory: Path) -> int:
    """Sorts by last use: `touch` sets the time."""
    return directory.stat().st_mtime_ns
