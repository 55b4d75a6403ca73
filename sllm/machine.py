"""What the machine has for this process: memory and processors, as far as its cgroups let it.

A container sees the memory and the processors of its whole machine. What it may take of them
stands in the files of its cgroup and of all above it, of which the least counts; see cgroups(7).
Neither psutil nor the standard library reads them.
"""

import math
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path, PurePosixPath
from typing import Final

_NO_LIMIT: Final = 1 << 60
"""Bytes. The first version writes the largest number of pages that it can count for no limit."""
_BOUNDING: Final = frozenset({"memory", "cpu", "hugetlb"})
"""The controllers that matter here."""
_MEMORY_LIMITS: Final = ("memory.max", "memory.high", "memory.limit_in_bytes")
"""Above memory.high the kernel lets a process stand still rather than end it."""
_HUGE_PAGE_LIMITS: Final = ("hugetlb.2MB.max", "hugetlb.2MB.limit_in_bytes")
"""What may be touched. What may be reserved has limits of its own, which a mapping meets."""
_ESCAPED: Final = re.compile(r"\\([0-7]{3})")
"""A blank or the like in a path of /proc/self/mountinfo."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What cgroups leave a process. None: as much as there is."""

    memory_bytes: int | None = None
    processors: float | None = None
    """Processor seconds in each second."""
    huge_page_bytes: int | None = None
    """Of the pages of 2 MiB that were set aside. The kernel ends who touches more of them."""


def limits(root: Path = Path("/")) -> Limits:
    """The least that this process's cgroups allow, of either version, with all above them.

    Args:
        root: Where the system's files are: /proc/self and what is mounted.
    """
    groups = list(_groups(root))
    quotas = [quota for group in groups if (quota := _quota(group)) is not None]
    return Limits(
        _least(groups, _MEMORY_LIMITS),
        min(quotas, default=None),
        _least(groups, _HUGE_PAGE_LIMITS),
    )


def memory_bytes(root: Path = Path("/")) -> int:
    """Memory that this process and its children may take: the machine's, or less."""
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    allowed = limits(root).memory_bytes
    return installed if allowed is None else min(installed, allowed)


def processors(root: Path = Path("/")) -> int:
    """Threads that can compute at once: processors that this process may use, within its quota.

    At least one. What is over of a quota's whole processors is used by one thread more. With more
    threads than these a quota is used up early in each period, and then all of them stand still:
    the event loop, too.
    """
    usable = len(os.sched_getaffinity(0))
    quota = limits(root).processors
    return usable if quota is None else max(1, min(usable, math.ceil(quota)))


def threads(most: int) -> int:
    """How many of `most` threads that move bytes there should be: half where one can compute."""
    return most if processors() > 1 else max(1, most // 2)


# --- the files --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Mount:
    """Where a hierarchy of cgroups can be seen."""

    controllers: frozenset[str]
    """Empty: all of them, in the second version."""
    top: PurePosixPath
    """The cgroup that is seen at `point`."""
    point: Path


def _groups(root: Path) -> Iterator[Path]:
    """Directories of this process's cgroups in all hierarchies, with those above."""
    mounts = list(_mounts(root))
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, names, path = line.split(":", 2)
        controllers = _BOUNDING.intersection(names.split(","))
        for mount in mounts:
            if (mount.controllers & controllers) or (not names and not mount.controllers):
                yield from _upwards(mount, PurePosixPath(path))


def _upwards(mount: _Mount, group: PurePosixPath) -> Iterator[Path]:
    """The directory of a cgroup under a mount, and those above it that can be seen there."""
    # A path that leads elsewhere is another namespace's: only the mount itself is then known.
    inside = group.relative_to(mount.top) if group.is_relative_to(mount.top) else PurePosixPath()
    if ".." in inside.parts:
        inside = PurePosixPath()
    yield mount.point / inside
    yield from (mount.point / above for above in inside.parents)


def _mounts(root: Path) -> Iterator[_Mount]:
    for line in _text(root / "proc/self/mountinfo").splitlines():
        about, _, filesystem = line.partition(" - ")
        kind, _, options = filesystem.split(" ", 2)
        if kind not in ("cgroup", "cgroup2"):
            continue
        top, point = (_ESCAPED.sub(_unescaped, one) for one in about.split(" ")[3:5])
        names = frozenset(options.split(",")) if kind == "cgroup" else frozenset()
        yield _Mount(names, PurePosixPath(top), root / point.lstrip("/"))


def _unescaped(found: re.Match[str]) -> str:
    return chr(int(found[1], 8))


def _least(groups: Iterable[Path], names: Iterable[str]) -> int | None:
    """Bytes: the least that stands in files of these names."""
    texts = [_text(group / name) for group, name in product(groups, names)]
    limits = [int(text) for text in texts if text.isdecimal()]
    return min((limit for limit in limits if limit < _NO_LIMIT), default=None)


def _quota(group: Path) -> float | None:
    """Processors: microseconds of running in each period of so many."""
    quota, _, period = _text(group / "cpu.max").partition(" ")
    if not period:
        quota, period = (_text(group / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    return int(quota) / int(period) if quota.isdecimal() and int(quota) else None


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""  # no such file; or a group that has gone
