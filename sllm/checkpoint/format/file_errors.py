"""What the system's errors say of a checkpoint's file: that it is damaged, or nothing at all.

Only what proves damage may cost a copy its place: a process that has run out of descriptors has
learned nothing of the file.
"""

import errno
from pathlib import Path

from sllm.checkpoint.format.manifest import corrupt
from sllm.errors import CheckpointUnreadable, SllmError

_NOT_THERE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP}
"""Of a path that a checkpoint has a file at."""
_SHORTAGES = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ENOBUFS}
"""Of the process or the machine."""


def cannot_open(path: Path, error: OSError) -> SllmError:
    """The error for a file that cannot be opened: CheckpointCorrupt, or CheckpointUnreadable."""
    if error.errno in _NOT_THERE:
        return corrupt(path, f"cannot be opened: {error.strerror}")
    return _unreadable(path, f"cannot be opened now: {error.strerror}")


def cannot_read(path: Path, error: OSError, offset: int) -> SllmError:
    """The same for one that cannot be read at an offset in bytes, also when tried again."""
    if error.errno not in _SHORTAGES:
        return corrupt(path, f"cannot be read: {error.strerror}", offset)
    return _unreadable(path, f"cannot be read now: {error.strerror}")


def _unreadable(path: Path, problem: str) -> CheckpointUnreadable:
    return CheckpointUnreadable(
        f"{path} {problem}; nothing is known to be wrong with it: try again, or look at the node",
        metadata={"file": str(path)},
    )
