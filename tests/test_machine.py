"""What this process may take: by files as the kernel writes them, and by the kernel's own."""

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest

from sllm import machine
from sllm.clock import MonotonicClock
from sllm.machine import Limits
from sllm.node.config import NodeConfig
from sllm.node.transfers.read_queue import ReadQueue

GIB = 1 << 30
UNLIMITED_V1 = 9223372036854771712
V2 = "42 31 0:29 {top} {point} rw,nosuid - cgroup2 cgroup rw,nsdelegate"
V1 = "33 31 0:30 {top} {point} rw,relatime - cgroup cgroup rw,{names}"
OTHER = "24 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw"


def tree(
    root: Path, group: str, mounts: list[str], files: Mapping[str, str | int] | None = None
) -> Path:
    """A system's files under `root`: /proc/self, and what stands in the cgroups'."""
    own = {"proc/self/cgroup": group, "proc/self/mountinfo": "\n".join([OTHER, *mounts])}
    for name, content in {**own, **(files or {})}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return root


def v2(root: Path, files: Mapping[str, str | int], group: str = "/a/b", top: str = "/") -> Path:
    mount = V2.format(top=top, point="/sys/fs/cgroup")
    inside = {f"sys/fs/cgroup/{name}": content for name, content in files.items()}
    return tree(root, f"0::{group}", [mount], inside)


def v1(root: Path, files: Mapping[str, str | int], group: str = "/a/b", top: str = "/") -> Path:
    mounts = [
        V1.format(top=top, point="/sys/fs/cgroup/memory", names="memory"),
        V1.format(top=top, point="/sys/fs/cgroup/cpu,cpuacct", names="cpu,cpuacct"),
        V1.format(top=top, point="/sys/fs/cgroup/hugetlb", names="hugetlb"),
        V1.format(top=top, point="/sys/fs/cgroup/systemd", names="name=systemd"),
        V2.format(top="/", point="/sys/fs/cgroup/unified"),
    ]
    own = "".join(f"4:{names}:{group}\n" for names in ("cpu,cpuacct", "memory", "hugetlb"))
    groups = f"{own}1:name=systemd:/elsewhere\n0::/"
    inside = {f"sys/fs/cgroup/{name}": content for name, content in files.items()}
    return tree(root, groups, mounts, inside)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, Limits()),
        ({"a/b/memory.max": "max", "a/b/cpu.max": "max 100000"}, Limits()),
        ({"a/b/memory.max": GIB, "a/b/cpu.max": "50000 100000"}, Limits(GIB, 0.5)),
        # The least of all above counts, wherever it is.
        ({"a/b/memory.max": GIB, "a/memory.max": GIB // 2}, Limits(GIB // 2)),
        ({"a/b/memory.max": "max", "memory.max": GIB}, Limits(GIB)),
        ({"a/b/memory.max": GIB, "a/b/memory.high": GIB // 4}, Limits(GIB // 4)),
        ({"a/b/cpu.max": "400000 100000", "a/cpu.max": "75000 50000"}, Limits(None, 1.5)),
        # What is beside or below it does not.
        ({"c/memory.max": 1, "a/b/c/memory.max": 1, "a/b/memory.max": GIB}, Limits(GIB)),
        ({"a/b/memory.max": "", "a/b/cpu.max": "nonsense"}, Limits()),
        ({"a/b/hugetlb.2MB.max": "max", "a/hugetlb.2MB.max": 0}, Limits(huge_page_bytes=0)),
    ],
)
def test_limits_of_the_second_version(
    tmp_path: Path, files: Mapping[str, str | int], expected: Limits
) -> None:
    assert machine.limits(v2(tmp_path, files)) == expected


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"memory/a/b/memory.limit_in_bytes": UNLIMITED_V1}, Limits()),
        ({"memory/a/b/memory.limit_in_bytes": GIB}, Limits(GIB)),
        (
            {
                "memory/a/b/memory.limit_in_bytes": UNLIMITED_V1,
                "memory/a/memory.limit_in_bytes": GIB,
            },
            Limits(GIB),
        ),
        (
            {
                "cpu,cpuacct/a/b/cpu.cfs_quota_us": -1,
                "cpu,cpuacct/a/b/cpu.cfs_period_us": 100000,
                "cpu,cpuacct/a/cpu.cfs_quota_us": 250000,
                "cpu,cpuacct/a/cpu.cfs_period_us": 100000,
            },
            Limits(None, 2.5),
        ),
        ({"hugetlb/a/b/hugetlb.2MB.limit_in_bytes": GIB}, Limits(huge_page_bytes=GIB)),
        ({"systemd/elsewhere/memory.limit_in_bytes": 1}, Limits()),
    ],
)
def test_limits_of_the_first_version(
    tmp_path: Path, files: Mapping[str, str | int], expected: Limits
) -> None:
    assert machine.limits(v1(tmp_path, files)) == expected


@pytest.mark.parametrize(
    ("group", "top"),
    [
        ("/", "/"),  # a namespace of its own
        ("/docker/abc", "/docker/abc"),  # none: the path is the machine's, its end is mounted
        ("/../../other", "/"),  # moved out of the namespace's own
        ("/docker/abc", "/../.."),
    ],
)
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_limits_of_a_container(tmp_path: Path, version: str, group: str, top: str) -> None:
    if version == "v2":
        root = v2(tmp_path, {"memory.max": GIB}, group, top)
    else:
        root = v1(tmp_path, {"memory/memory.limit_in_bytes": GIB}, group, top)
    assert machine.limits(root) == Limits(GIB)


def test_a_mount_point_with_blanks(tmp_path: Path) -> None:
    mount = V2.format(top="/", point="/c\\040groups")
    root = tree(tmp_path, "0::/a", [mount], {"c groups/a/memory.max": GIB})
    assert machine.limits(root) == Limits(GIB)


def test_a_system_without_cgroups(tmp_path: Path) -> None:
    assert machine.limits(tmp_path) == Limits()
    assert machine.processors(tmp_path) == len(os.sched_getaffinity(0))
    assert machine.memory_bytes(tmp_path) == psutil.virtual_memory().total


@pytest.mark.parametrize(("quota", "expected"), [("50000", 1), ("100000", 1), ("99900000", None)])
def test_processors_are_those_of_the_quota(
    tmp_path: Path, quota: str, expected: int | None
) -> None:
    root = v2(tmp_path, {"a/b/cpu.max": f"{quota} 100000"})
    assert machine.processors(root) == (expected or len(os.sched_getaffinity(0)))


@pytest.mark.parametrize("limit", [GIB // 8, 1 << 59])
def test_memory_is_the_lesser_of_limit_and_machine(tmp_path: Path, limit: int) -> None:
    root = v2(tmp_path, {"a/memory.max": limit})
    assert machine.memory_bytes(root) == min(limit, psutil.virtual_memory().total)


def test_threads_are_fewer_where_one_alone_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    usable = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(usable)})
        assert [machine.threads(most) for most in (8, 2, 1)] == [4, 1, 1]
    finally:
        os.sched_setaffinity(0, usable)


def test_nothing_else_counts_what_the_machine_has() -> None:
    """Whoever asks the machine itself sees what the cgroup does not let this process have."""
    asking = re.compile(
        r"cpu_count|sched_getaffinity|virtual_memory|SC_PHYS_PAGES|SC_NPROCESSORS|/proc/meminfo"
    )
    package = Path(machine.__file__).parent
    found = {path.name for path in package.rglob("*.py") if asking.search(path.read_text())}
    assert found == {"machine.py"}


def test_a_node_of_one_processor_has_half_the_threads(tmp_path: Path) -> None:
    usable, others = os.sched_getaffinity(0), set(threading.enumerate())
    try:
        os.sched_setaffinity(0, {min(usable)})
        node = NodeConfig("localhost:1", tmp_path)
        queue = ReadQueue(node.read_threads, MonotonicClock())
    finally:
        os.sched_setaffinity(0, usable)
    came = set(threading.enumerate()) - others
    reading = [one for one in came if one.name.startswith("chunk-read_")]
    queue.close()
    assert (node.read_threads, node.fetch_threads, len(reading)) == (2, 4, 3)


# --- the kernel's own -------------------------------------------------------------------------

CHILD = """
import os, sys
for group in sys.argv[1:]:
    open(os.path.join(group, "cgroup.procs"), "w").write(str(os.getpid()))
from sllm import machine
print(machine.memory_bytes(), machine.processors())
"""


def test_the_kernels_own_limits() -> None:
    """A child in cgroups that are made for it: of whichever version this system has."""
    with limited(memory=256 << 20, quota=50_000) as groups:
        done = subprocess.run(
            [sys.executable, "-c", CHILD, *map(str, groups)],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
    assert done.stdout.split() == [str(256 << 20), "1"]


@contextmanager
def limited(memory: int, quota: int) -> Iterator[list[Path]]:
    """Cgroups with a limit of bytes, and a quota of microseconds in every tenth of a second."""
    settings = {
        "memory": ("memory.limit_in_bytes", memory, "memory.max", memory),
        "cpu": ("cpu.cfs_quota_us", quota, "cpu.max", f"{quota} 100000"),
    }
    made: list[Path] = []
    with ExitStack() as stack:
        for controller, (first, value, second, text) in settings.items():
            group = _own(controller) / f"sllm-{os.getpid()}"
            try:
                if group not in made:  # the second version has one for both
                    group.mkdir()
                    stack.callback(group.rmdir)
                in_second = (group / second).exists()
                (group / (second if in_second else first)).write_text(
                    str(text if in_second else value)
                )
            except OSError as error:
                pytest.skip(f"no cgroup can be made here: {error}")
            made.append(group)
        yield made


def _own(controller: str) -> Path:
    """The directory of this process's own cgroup, where it is mounted as systems usually do."""
    top = Path("/sys/fs/cgroup")
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        if controller in names.split(","):
            return top / names / path.lstrip("/")
    return top
