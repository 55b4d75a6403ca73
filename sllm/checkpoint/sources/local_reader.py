"""Reads the weights of a directory."""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from sllm.checkpoint.format.manifest import corrupt
from sllm.checkpoint.format.room import Room


class LocalReader:
    """A source's files, open for as long as the block lasts. Any number of threads may read."""

    def __init__(self, paths: Sequence[Path], room: Room) -> None:
        """`room`: where they may lie."""
        self._paths = paths
        self._room = room
        self._stack = ExitStack()
        self._fds: dict[Path, int] = {}

    def read_into(self, memory: memoryview, file: Path, offset: int) -> None:
        """Fills `memory` with a file's bytes from `offset` on.

        Raises:
            CheckpointCorrupt: the file ends before, or cannot be read; names where.
        """
        done = 0
        while done < len(memory):
            try:
                count = os.preadv(self._fds[file], [memory[done:]], offset + done)
            except OSError as error:
                raise corrupt(file, f"cannot be read: {error}", offset + done) from error
            if not count:  # where it ends: other pieces, further on, may be read at once
                end = os.fstat(self._fds[file]).st_size
                raise corrupt(file, "the file ends here", min(end, offset + done))
            done += count

    def __enter__(self) -> Self:
        with ExitStack() as stack:  # what was opened is closed if one of them cannot be
            stack.push(self._stack)
            self._open_all()
            stack.pop_all()
        return self

    def _open_all(self) -> None:
        for path in self._paths:
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            self._stack.callback(os.close, fd)
            self._room.check(fd, path)
            # Read once: what was read may leave the page cache again.
            self._stack.callback(os.posix_fadvise, fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
            self._fds[path] = fd

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()
