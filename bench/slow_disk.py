"""A disk that gives packed checkpoints slowly, or not at all for a while: see slow_disk.c.

A library that is loaded before others stands between a node and the system, so that the disk looks
slow to that node alone, whatever it really is.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

_SOURCE = Path(__file__).with_name("slow_disk.c")


class NoCompiler(RuntimeError):
    """There is no compiler for C on this machine."""


@contextmanager
def slow_disk(
    scratch: Path, *, bytes_per_second: float | None = None, gives: Path | None = None
) -> Iterator[None]:
    """Has the disk be slow for the processes that are started within.

    Args:
        scratch: where the library is put.
        bytes_per_second: that it gives. None: as many as the real one.
        gives: a file with the number of bytes that it gives from when that is written, for as long
            as it is there.

    Raises:
        NoCompiler: the library cannot be made.
    """
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise NoCompiler("a slow disk takes a compiler for C: install gcc")
    library = scratch / "slow_disk.so"
    command = [compiler, "-shared", "-fPIC", "-O2", "-o", str(library), str(_SOURCE), "-ldl"]
    subprocess.run([*command, "-lpthread"], check=True)
    with _variables(
        {
            "LD_PRELOAD": str(library),
            "SLOW_DISK_BYTES_PER_SECOND": f"{bytes_per_second:.0f}" if bytes_per_second else None,
            "SLOW_DISK_GIVES": str(gives) if gives else None,
        }
    ):
        yield


@contextmanager
def _variables(wanted: Mapping[str, str | None]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in wanted}
    _set(wanted)
    try:
        yield
    finally:
        _set(before)


def _set(wanted: Mapping[str, str | None]) -> None:
    for name, value in wanted.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
