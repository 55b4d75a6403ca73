"""A directory that goes with its process, also when that is killed: the next one removes it."""

import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

_PREFIX: Final = "sllm-gateway-"
_LOCK: Final = ".owner"


class OwnDirectory:
    """Held by a lock for as long as its process lives."""

    def __init__(self, parent: Path) -> None:
        """Makes it, and removes those of processes that are no more. Blocks."""
        _remove_left(parent)
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        self._lock = os.open(self.path / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def remove(self) -> None:
        """Removes it."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def _remove_left(parent: Path) -> None:
    for path in parent.glob(f"{_PREFIX}*"):
        with suppress(OSError):  # it is another user's, or goes just now
            lock = os.open(path / _LOCK, os.O_RDWR)  # none is there while it is being made
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(lock)
