"""The calls of libc that Python's own mmap module lacks. ctypes releases the GIL around each."""

import ctypes
import errno
import os

PROT_NONE, PROT_READ, PROT_WRITE = 0, 1, 2
MAP_SHARED, MAP_PRIVATE, MAP_FIXED = 0x01, 0x02, 0x10
MAP_ANONYMOUS, MAP_NORESERVE = 0x20, 0x4000
MREMAP_MAYMOVE, MREMAP_FIXED, MREMAP_DONTUNMAP = 1, 2, 4
MADV_DONTNEED, MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_POPULATE_WRITE = 4, 14, 15, 23

_MAP_FAILED = ctypes.c_void_p(-1).value
_CACHESTAT = 451
"""The system call's number, the same on all architectures; the C library has no name for it."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int64,
]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.mremap.restype = ctypes.c_void_p
_libc.mremap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_void_p,
]
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.syscall.restype = ctypes.c_long
_libc.syscall.argtypes = [
    ctypes.c_long,
    ctypes.c_uint,
    ctypes.c_void_p,
    ctypes.c_void_p,
    ctypes.c_uint,
]


def mmap(
    address: int | None, length: int, protection: int, flags: int, fd: int, offset: int
) -> int:
    """Maps memory and returns its address: see mmap in section 2 of the manual.

    Raises:
        OSError: the kernel refused.
    """
    mapped = _libc.mmap(address, length, protection, flags, fd, offset)
    if mapped is None or mapped == _MAP_FAILED:
        raise _error("mmap")
    return int(mapped)


def munmap(address: int, length: int) -> None:
    """Gives addresses back.

    Raises:
        OSError: the kernel refused.
    """
    if _libc.munmap(address, length):
        raise _error("munmap")


def move_pages(address: int, length: int, to: int) -> None:
    """Has the memory behind addresses stand behind others, in the place of what was there.

    What may be done with it goes along. The former addresses stay, without memory.

    Raises:
        OSError: the kernel refused: it is not one mapping of private memory, or Linux is older than
            5.7.
    """
    flags = MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP
    if _libc.mremap(address, length, length, flags, to) == _MAP_FAILED:
        raise _error("mremap")


def mprotect(address: int, length: int, protection: int) -> None:
    """Says what may be done with memory.

    Raises:
        OSError: the kernel refused.
    """
    if _libc.mprotect(address, length, protection):
        raise _error("mprotect")


def madvise(address: int, length: int, advice: int) -> None:
    """Tells the kernel how memory will be used, or has it act on it.

    Raises:
        OSError: the kernel refused, or does not know the advice.
    """
    if _libc.madvise(address, length, advice):
        raise _error("madvise")


def mincore(address: int, length: int, pages: int) -> bytes:
    """A byte for each page of a mapping, whose lowest bit says whether it is in memory.

    Raises:
        OSError: the kernel refused.
    """
    resident = ctypes.create_string_buffer(pages)
    if _libc.mincore(address, length, resident):
        raise _error("mincore")
    return resident.raw


def cachestat(fd: int, offset: int, size: int) -> int:
    """How many pages of a range of a file are in the page cache: see linux/mman.h.

    Raises:
        OSError: the kernel refused, or is older than Linux 6.5.
    """
    asked, found = (ctypes.c_uint64 * 2)(offset, size), (ctypes.c_uint64 * 5)()
    if _libc.syscall(_CACHESTAT, fd, asked, found, 0):
        raise _error("cachestat")
    return int(found[0])


def give_back(address: int, length: int) -> None:
    """Takes the memory behind addresses away, which read as zeros then, where they may be read.

    Raises:
        OSError: the kernel refused.
    """
    madvise(address, length, MADV_DONTNEED)


def populate(address: int, length: int) -> None:
    """Has the kernel back addresses with memory, in one call; before Linux 5.14 it does nothing.

    Direct I/O into memory that was never touched is many times slower than touching it first.

    Raises:
        OSError: the kernel refused; above all, there is no memory.
    """
    _try_advice(address, length, MADV_POPULATE_WRITE)


def advise_huge_pages(address: int, length: int) -> None:
    """Asks for huge pages. A kernel without them goes on without.

    Raises:
        OSError: the kernel refused.
    """
    _try_advice(address, length, MADV_HUGEPAGE)


def advise_small_pages(address: int, length: int) -> None:
    """Asks for no more huge pages; those that are there stay.

    Raises:
        OSError: the kernel refused.
    """
    _try_advice(address, length, MADV_NOHUGEPAGE)


def _try_advice(address: int, length: int, advice: int) -> None:
    try:
        madvise(address, length, advice)
    except OSError as error:
        if error.errno != errno.EINVAL:  # EINVAL: the kernel does not know the advice
            raise


def _error(call: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{call}: {os.strerror(number)}")
