"""What of a file the kernel holds in memory already."""

import mmap
import os

from sllm import libc

_ENOUGH = 0.9
"""Share of a range from which on it is faster, and kinder to the disk, to copy it from there."""


def may_be_asked(fd: int) -> bool:
    """Whether the kernel tells the truth: of others' files it calls every page resident."""
    status = os.fstat(fd)
    return os.geteuid() in (0, status.st_uid)


def holds(fd: int, offset: int, size: int) -> bool:
    """Whether most of a range of a file is in the page cache.

    Args:
        fd: the file, open for reading.
        offset: bytes; a multiple of the page.
        size: bytes, more than none.
    """
    pages = -(-size // mmap.PAGESIZE)
    return _resident(fd, offset, size, pages) >= _ENOUGH * pages


def _resident(fd: int, offset: int, size: int, pages: int) -> int:
    """How many of the pages are there. Asking page by page costs a load several hundredths."""
    try:
        return libc.cachestat(fd, offset, size)
    except OSError:
        return _resident_by_mapping(fd, offset, size, pages)


def _resident_by_mapping(fd: int, offset: int, size: int, pages: int) -> int:
    """The same, of kernels that have no better answer."""
    try:
        address = libc.mmap(None, size, libc.PROT_READ, libc.MAP_SHARED, fd, offset)
    except OSError:
        return 0  # no file to be mapped
    try:
        resident = libc.mincore(address, size, pages)
    finally:
        libc.munmap(address, size)
    return pages - resident.count(0)
