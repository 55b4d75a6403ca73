"""The files of a model's directory, none of which leads out of it or is anything but a file.

Whoever can write into such a directory could otherwise have the node read what only the node may
read, or wait for ever for the other end of a FIFO.
"""

import errno
import os
import re
import stat
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sllm.checkpoint.format.manifest_file import MANIFEST_FILE
from sllm.checkpoint.format.room import Room
from sllm.checkpoint.sources.file_names import (
    CONFIG,
    is_pooling,
    is_small,
    matters,
    pooling_name,
)
from sllm.checkpoint.sources.small_files import check_small
from sllm.errors import InvalidSource, SllmError, SourceNotFound, SourceUnavailable

_PARTITION = re.compile(r"partition-.*")
_SHOWN = 300
"""Letters of a path in a message."""
_NO_SUCH = {errno.ENOENT, errno.ENOTDIR}
"""Of a path that leads to no directory."""
_WRONG_PATH = {errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL}
"""What trying again does not mend."""


def list_files(directory: Path) -> list[Path]:
    """The files in a directory that belong to a checkpoint, by name.

    Raises:
        SourceNotFound: the directory is not there.
        InvalidSource: it cannot be read, or one of them is no plain file, or leads elsewhere.
        SourceUnavailable: it cannot be read now.
    """
    return [path for path, _ in list_statuses(directory)]


def list_statuses(directory: Path) -> list[tuple[Path, os.stat_result]]:
    """The same files, each with what it is now.

    Raises:
        SourceNotFound, InvalidSource, SourceUnavailable: as `list_files`.
    """
    with _typed_failures(directory):
        found = sorted(path for path in directory.iterdir() if _belongs(path.name))
        files = [path for path in found if not path.is_dir()]
        files += _pooling_files(directory, {path.name for path in files})
        _check(directory, files)
        return [(path, path.stat()) for path in files]


def _pooling_files(directory: Path, names: Collection[str]) -> list[Path]:
    """Those that lie in directories of their own, unless they have been laid beside the others."""
    within = sorted(path for path in directory.iterdir() if is_pooling(path.name))
    return [
        path / CONFIG
        for path in within
        if pooling_name(path.name) not in names
        and not path.is_symlink()
        and (path / CONFIG).exists()
    ]


def check_files(directory: Path, names: Iterable[str]) -> None:
    """Makes sure that files which a manifest names are plain ones of the directory.

    Raises:
        InvalidSource, SourceUnavailable: as `list_files`.
    """
    with _typed_failures(directory):
        _check(directory, [directory / name for name in names])


def real(path: Path) -> Path:
    """Where a path leads, as far as it leads anywhere: `resolve` fails for links in a circle."""
    return Path(os.path.realpath(path))


def _belongs(name: str) -> bool:
    return matters(name) or name == MANIFEST_FILE or _PARTITION.fullmatch(name) is not None


def _check(directory: Path, paths: Iterable[Path]) -> None:
    room = Room.of(directory)
    for path in paths:
        if path.is_symlink():
            target = real(path)
            if not room.holds(target):
                raise InvalidSource(
                    f"{path} is a link out of its directory: put the file itself there"
                )
            if not target.exists():
                raise InvalidSource(f"{path} is a link to nothing: put the file itself there")
        if path.exists():
            _check_plain(path, path.stat())


def _check_plain(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise InvalidSource(f"{path} is no plain file, but a FIFO, a device or a socket")
    if is_small(path.name):
        check_small(path, status.st_size)


@contextmanager
def _typed_failures(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _unlisted(directory, error) from error


def _unlisted(directory: Path, error: OSError) -> SllmError:
    if error.errno in _NO_SUCH:
        return SourceNotFound(f"there is no directory {str(directory)[:_SHOWN]}: {error.strerror}")
    cls = InvalidSource if error.errno in _WRONG_PATH else SourceUnavailable
    return cls(f"{str(directory)[:_SHOWN]} cannot be read: {error.strerror}")
