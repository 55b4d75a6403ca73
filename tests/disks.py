"""Small disks of their own, which are full or read-only for real. They take the right to mount."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


class SmallDisk:
    """A file system in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def make_read_only(self) -> None:
        """Nothing may be open for writing."""
        subprocess.run(["mount", "-o", "remount,ro", str(self.path)], check=True)

    def make_writable(self) -> None:
        subprocess.run(["mount", "-o", "remount,rw", str(self.path)], check=True)

    def freeze(self) -> None:
        """Nothing can be made, moved or removed at its top, whoever has what open."""
        subprocess.run(["chattr", "+i", str(self.path)], check=True)

    def thaw(self) -> None:
        """Undoes `freeze`."""
        subprocess.run(["chattr", "-i", str(self.path)], check=True)

    def fill(self) -> None:
        """Takes all the room that is left."""
        with (self.path / "filler").open("wb", buffering=0) as file:
            try:
                while file.write(bytes(4096)):
                    pass
            except OSError:
                return

    def empty(self) -> None:
        """Gives back what `fill` has taken."""
        (self.path / "filler").unlink()


@contextmanager
def small_disk(path: Path, size_bytes: int) -> Iterator[SmallDisk]:
    """Mounts one at `path`, for as long as the block lasts. Where it is refused, skips the test."""
    with small_disk_if_possible(path, size_bytes) as disk:
        if disk is None:
            pytest.skip("this user may not mount a file system")
        yield disk


@contextmanager
def small_disk_if_possible(path: Path, size_bytes: int) -> Iterator[SmallDisk | None]:
    """The same, but where it is refused there is a directory, and no disk."""
    path.mkdir(parents=True)
    options = ["-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(path)]
    mounted = subprocess.run(["mount", *options], capture_output=True, check=False)
    if mounted.returncode:
        yield None
        return
    try:
        yield SmallDisk(path)
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)
