"""Directories that are there whole or not at all."""

import errno
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sllm.checkpoint.files.direct_io import flush_directory
from sllm.errors import InvalidArgument, NoCapacity

_FULL = {errno.ENOSPC, errno.EDQUOT}


@contextmanager
def atomic_directory(destination: Path) -> Iterator[Path]:
    """A directory's temporary name: it is renamed when the block ends, or deleted if it fails.

    The block makes the directory and flushes it. A process that is killed in it leaves
    `.NAME.incoming-…` beside `destination`.

    Raises:
        InvalidArgument: something is at `destination`, or nothing can be written there.
        NoCapacity: the disk is full.
    """
    temporary = destination.parent / f".{destination.name}.incoming-{uuid.uuid4().hex}"
    with _typed_errors(destination):
        if destination.exists():
            raise InvalidArgument(f"{destination} is there already: give another name")
        destination.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            temporary.rename(destination)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        flush_directory(destination.parent)


@contextmanager
def _typed_errors(destination: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise NoCapacity(f"the disk of {destination.parent} is full") from error
        raise InvalidArgument(f"{destination} cannot be written: {error}") from error
