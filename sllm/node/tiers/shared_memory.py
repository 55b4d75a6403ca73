"""Memory that processes share, in huge pages where the kernel gives them.

Kernels of engines read weights some percent faster out of huge pages, and direct reads fill them
faster. There are two kinds: those that an operator has set aside (`vm.nr_hugepages`), and those
that the kernel makes of what is free where it is allowed to for shared memory
(`transparent_hugepage/shmem_enabled`).
"""

import ctypes
import fcntl
import mmap
import os
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from sllm import libc, machine
from sllm.checkpoint.files.memory import HUGE_PAGE_BYTES

_SETTINGS = Path("/sys/kernel/mm/transparent_hugepage")
_ON_REQUEST = frozenset({"advise", "always", "within_size", "force"})
_AS_ALL_SIZES = "inherit"
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class Pages(StrEnum):
    """What memory consists of."""

    RESERVED = "reserved"
    """Huge pages that were set aside: all of it is there from the beginning."""
    TRANSPARENT = "transparent"
    """Huge pages where the kernel finds them, when they are touched."""
    SMALL = "small"


@dataclass(frozen=True, slots=True)
class SharedMemory:
    """A memfd, and this process's mapping of it."""

    fd: int
    """Nobody can shrink it under another's mapping."""
    mapped: mmap.mmap
    pages: Pages

    @property
    def address(self) -> int:
        """Of the first byte."""
        return ctypes.addressof(ctypes.c_char.from_buffer(self.mapped))


def share(name: str, size: int, unit: int, *, huge: bool) -> SharedMemory:
    """Takes addresses; memory is taken as it is touched, but for pages that were set aside.

    Args:
        name: of the memory, for operators.
        size: bytes; whole units.
        unit: bytes that are mapped at once at least.
        huge: whether it is in huge pages where the kernel gives them.

    Raises:
        OSError: the kernel refused.
    """
    if huge and not unit % HUGE_PAGE_BYTES and (reserved := _try_reserved(name, size)):
        return reserved
    fd = _sealed(os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING), size)
    memory = SharedMemory(fd, mmap.mmap(fd, size), _on_request() if huge else Pages.SMALL)
    # Of a memfd, the kernel aligns the mapping for them itself where it allows them.
    advise = libc.advise_huge_pages if huge else libc.advise_small_pages
    advise(memory.address, size)
    return memory


def _try_reserved(name: str, size: int) -> SharedMemory | None:
    """In pages that were set aside; None: there are not as many, or not for this process."""
    allowed = machine.limits().huge_page_bytes
    if allowed is not None and allowed < size:
        return None  # touching them would fail, although the mapping does not
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | os.MFD_HUGETLB | os.MFD_HUGE_2MB
    try:
        fd = os.memfd_create(name, flags)
    except OSError:  # the kernel has none of this size
        return None
    try:
        # The mapping keeps them all for this memory: touching them later cannot fail.
        return SharedMemory(_sealed(fd, size), mmap.mmap(fd, size), Pages.RESERVED)
    except OSError:
        os.close(fd)
        return None


def _sealed(fd: int, size: int) -> int:
    os.ftruncate(fd, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    return fd


def _on_request() -> Pages:
    """What the kernel gives shared memory that asks for huge pages."""
    size = _chosen(_SETTINGS / f"hugepages-{HUGE_PAGE_BYTES >> 10}kB" / "shmem_enabled")
    if size in ("", _AS_ALL_SIZES):
        size = _chosen(_SETTINGS / "shmem_enabled")
    return Pages.TRANSPARENT if size in _ON_REQUEST else Pages.SMALL


def _chosen(setting: Path) -> str:
    """The word in brackets; empty: this kernel has no such setting."""
    try:
        words = setting.read_text().split()
    except OSError:
        return ""
    return next((word.strip("[]") for word in words if word.startswith("[")), "")
