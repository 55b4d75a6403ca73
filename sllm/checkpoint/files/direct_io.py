"""Files read and written around the page cache, where the file system allows it."""

import errno
import fcntl
import functools
import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import structlog

from sllm.checkpoint.files import page_cache
from sllm.checkpoint.format.file_errors import cannot_read
from sllm.checkpoint.format.manifest import corrupt
from sllm.checkpoint.format.room import Room

_log = structlog.get_logger()


class DirectFile:
    """An open file whose transfers go straight between the disk and the caller's memory.

    Memory, offsets and lengths must be multiples of `BLOCK_BYTES`. Where O_DIRECT is refused,
    the page cache is used instead; and what is there already is read from there. Any number of
    threads may transfer at once; each releases the GIL for as long as its transfer takes.
    """

    def __init__(self, path: Path, flags: int) -> None:
        """Opens `path` with `flags` of os.open, and O_DIRECT if it can be had."""
        self.path = path
        try:
            self._fd = os.open(path, flags | os.O_CLOEXEC | os.O_DIRECT, 0o644)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            _say_buffered(path.parent)
            self._fd = os.open(path, flags | os.O_CLOEXEC, 0o644)
        self._cached_fd = self._open_cached(flags)

    def _open_cached(self, flags: int) -> int | None:
        """The same file by way of the page cache, if it is read and can be asked about that."""
        # A descriptor of its own: O_DIRECT is a property of the open file, not of a read.
        if flags & (os.O_WRONLY | os.O_RDWR) or not page_cache.may_be_asked(self._fd):
            return None
        try:
            return os.open(f"/proc/self/fd/{self._fd}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None  # without a second descriptor it is read from the disk

    def read_into(self, memory: memoryview, offset: int, size: int | None = None) -> None:
        """Fills `memory` with the bytes from `offset` on.

        Args:
            memory: whole blocks.
            offset: bytes from the start of the file, a multiple of the block.
            size: how many bytes must be there, if the file may end within the last block; None:
                all that `memory` has room for.

        Raises:
            CheckpointCorrupt: the file ends before, or cannot be read; names where.
            CheckpointUnreadable: it cannot be read now.
        """
        size = len(memory) if size is None else size
        try:
            done = self._read(memory, offset, size)
        except OSError as error:
            raise cannot_read(self.path, error, offset) from error
        if done < size:
            raise corrupt(self.path, "the file ends here", offset + done)

    def _read(self, memory: memoryview, offset: int, size: int) -> int:
        try:
            cached = self._read_cached(memory[:size], offset)
            return cached or self._transfer(os.preadv, memory, offset, size)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
        return self._transfer(os.preadv, memory, offset, size)  # some errors of disks pass

    def _read_cached(self, memory: memoryview, offset: int) -> int:
        """Fills `memory` from the page cache if most of it is there; otherwise returns 0."""
        fd = self._cached_fd
        if fd is None or not memory or not page_cache.holds(fd, offset, len(memory)):
            return 0
        done = 0
        while done < len(memory) and (count := os.preadv(fd, [memory[done:]], offset + done)):
            done += count
        return done

    def write_from(self, memory: memoryview, offset: int) -> None:
        """Writes all of `memory` at `offset`.

        Raises:
            OSError: the disk is full, or fails.
        """
        self._transfer(os.pwritev, memory, offset, len(memory))

    def flush(self) -> None:
        """Returns when the disk has it all, and drops it from the page cache."""
        os.fsync(self._fd)
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def _transfer(
        self,
        call: Callable[[int, list[memoryview], int], int],
        memory: memoryview,
        offset: int,
        size: int,
    ) -> int:
        """Repeats `call` until `size` bytes are moved or the file ends; returns how many were."""
        done = 0
        while done < size:
            try:
                count = call(self._fd, [memory[done:]], offset + done)
            except OSError as error:
                if error.errno != errno.EINVAL or not self._leave_direct():
                    raise
                continue
            if not count:
                break
            done += count
        return done

    def _leave_direct(self) -> bool:
        """Goes on through the page cache; False if that is where transfers go already.

        Some file systems refuse O_DIRECT only when it is used, and a short transfer leaves the
        rest unaligned.
        """
        flags = fcntl.fcntl(self._fd, fcntl.F_GETFL)
        if not flags & os.O_DIRECT:
            return False
        _say_buffered(self.path.parent)
        fcntl.fcntl(self._fd, fcntl.F_SETFL, flags & ~os.O_DIRECT)
        return True

    def check(self, room: Room) -> None:
        """Refuses a file that does not lie where those of its source may.

        Raises:
            InvalidSource: it lies elsewhere.
        """
        room.check(self._fd, self.path)

    def close(self) -> None:
        """Closes the file. No transfer may be under way."""
        os.close(self._fd)
        if self._cached_fd is not None:
            os.close(self._cached_fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def flush_directory(directory: Path) -> None:
    """Returns when the disk has the directory's entries."""
    fd = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@functools.cache
def _say_buffered(directory: Path) -> None:
    """Once for a directory."""
    _log.warning("node.direct_io_refused", directory=str(directory), instead="page cache")
