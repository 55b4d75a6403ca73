"""The disk's own speed, and files that are in the page cache, or are not."""

import mmap
import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

BLOCK_BYTES = 16 * 1024 * 1024
THREADS = 4


def drop_from_page_cache(paths: Iterable[Path]) -> None:
    """Makes the next reads of these files come from the disk."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def bring_into_page_cache(paths: Iterable[Path]) -> None:
    """Makes the next reads of these files come from memory."""
    buffer = bytearray(BLOCK_BYTES)
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def direct_read_seconds(paths: Iterable[Path]) -> float:
    """Seconds to read all these files with O_DIRECT, by a few threads, into touched memory."""
    buffers = [mmap.mmap(-1, BLOCK_BYTES) for _ in range(THREADS)]
    for buffer in buffers:
        buffer.madvise(mmap.MADV_HUGEPAGE)  # as the pool: direct reads into small pages are slower
        buffer.write(b"\0" * BLOCK_BYTES)
    blocks = [(path, at) for path in paths for at in range(0, path.stat().st_size, BLOCK_BYTES)]
    began = time.perf_counter()
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(_read_blocks, buffers, [blocks[index::THREADS] for index in range(THREADS)]))
    seconds = time.perf_counter() - began
    for buffer in buffers:
        buffer.close()
    return seconds


def _read_blocks(buffer: mmap.mmap, blocks: list[tuple[Path, int]]) -> None:
    for path, offset in blocks:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
        try:
            os.preadv(descriptor, [buffer], offset)
        finally:
            os.close(descriptor)
