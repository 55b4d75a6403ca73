"""Checkpoints that are in the pool alone, since the SSD tier's disk could not take them."""

import errno
import shutil
import tempfile
from pathlib import Path

REFUSALS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM}
)
"""What a disk says that takes nothing more, for now or for good."""


def problem_of(directory: Path, error: OSError) -> str:
    """What operators are told of a disk that has refused."""
    if error.errno == errno.ENOENT:
        return f"the directory {directory} is gone, and all that was in it: restart the node"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk of {directory} is full, though the tier's budget is not: free some of it"
    return f"the disk of {directory} cannot be written: {error.strerror}"


def is_refusal(error: OSError, directory: Path) -> bool:
    """Whether a disk takes nothing more in `directory`, which may have been deleted."""
    return error.errno in REFUSALS or (error.errno == errno.ENOENT and not directory.is_dir())


def has_room(directory: Path, size: int) -> bool:
    """Whether a disk that has refused may take so many bytes now."""
    try:
        # Free blocks alone tell nothing: it may be read-only, or out of quota.
        with tempfile.TemporaryFile(dir=directory) as file:
            file.write(bytes(1))
        return shutil.disk_usage(directory).free > size
    except OSError:
        return False


class SmallFiles:
    """Directories for the small files of such checkpoints, elsewhere than on that disk."""

    def __init__(self) -> None:
        self._root: Path | None = None

    def make(self) -> Path:
        """A new directory, which stays until `close`.

        Raises:
            OSError: there is no room for temporary files either.
        """
        if self._root is None:
            self._root = Path(tempfile.mkdtemp(prefix="sllm-unkept-"))
        return Path(tempfile.mkdtemp(dir=self._root))

    def has(self, directory: Path) -> bool:
        """Whether it was made here."""
        return self._root is not None and directory.parent == self._root

    def close(self) -> None:
        """Deletes them all."""
        if self._root is not None:
            shutil.rmtree(self._root, ignore_errors=True)
