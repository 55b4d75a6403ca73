"""Plain files, opened so that nothing else at their place can hold the opener up."""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

from sllm.checkpoint.format.room import Room
from sllm.errors import InvalidSource

MAX_SMALL_BYTES = 256 << 20
"""Larger files of the kinds that go with weights are none of them: each is read as a whole."""
_SPECIAL = "is no plain file"


def open_plain(path: Path, room: Room | None = None) -> BinaryIO:
    """A file, to be read; of a source, one that lies in its room.

    A FIFO, a device or a socket is not waited for: whoever can write into a model's directory
    could otherwise hold up every thread that looks at it.

    Raises:
        OSError: it cannot be opened, or is of another kind.
        InvalidSource: it lies elsewhere.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, _SPECIAL, str(path))
        if room:
            room.check(fd, path)
        return os.fdopen(fd, "rb")
    except BaseException:
        os.close(fd)
        raise


def read_plain(path: Path, room: Room | None = None) -> bytes:
    """All of a file.

    Raises:
        OSError: it cannot be opened or read, or is of another kind.
        InvalidSource: it lies elsewhere, or has grown beyond what a source's small files may have.
    """
    with open_plain(path, room) as file:
        if room is None:
            return file.read()
        size = os.fstat(file.fileno()).st_size
        if size > MAX_SMALL_BYTES:
            raise InvalidSource(f"{path} has {size} bytes; {MAX_SMALL_BYTES} are read at most")
        return file.read(size)  # and no more, however it grows meanwhile
