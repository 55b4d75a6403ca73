"""Plain files, opened so that nothing else at their place can hold the opener up."""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

_SPECIAL = "is no plain file"


def open_plain(path: Path) -> BinaryIO:
    """A file, to be read.

    A FIFO, a device or a socket is not waited for: whoever can write into a model's directory
    could otherwise hold up every thread that looks at it.

    Raises:
        OSError: it cannot be opened, or is of another kind.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, _SPECIAL, str(path))
        return os.fdopen(fd, "rb")
    except BaseException:
        os.close(fd)
        raise


def read_plain(path: Path) -> bytes:
    """All of a file.

    Raises:
        OSError: it cannot be opened or read, or is of another kind.
    """
    with open_plain(path) as file:
        return file.read()
