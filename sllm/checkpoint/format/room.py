"""Where the files of a source may lie, settled before any of them is opened.

Whoever can write into a model's directory can put a link into the place of a file, or of the
directory itself, between the look at it and the read. So each file is asked once it is open, when
nothing can take its place any more: where it lies, and whose it is.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from sllm.errors import InvalidSource


@dataclass(frozen=True, slots=True)
class Room:
    """Directories, without links in their paths, and owners whose files are read from there.

    room = Room.of(Path("/models/llama"))
    fd = os.open("/models/llama/config.json", os.O_RDONLY)
    room.check(fd, Path("/models/llama/config.json"))
    """

    directories: tuple[Path, ...]
    owners: frozenset[int] | None = None
    """User ids. None: anybody's."""

    @classmethod
    def of(cls, directory: Path, owners: frozenset[int] | None = None) -> "Room":
        """That of a directory as it is now: it, and in the hub's cache the blobs beside it."""
        lies = Path(os.path.realpath(directory))  # `resolve` fails for links in a circle
        repository = lies.parent.parent
        cached = lies.parent.name == "snapshots" and repository.name.startswith("models--")
        return cls((lies, repository / "blobs") if cached else (lies,), owners)

    def holds(self, path: Path) -> bool:
        """Whether a path without links lies within."""
        return any(path.is_relative_to(directory) for directory in self.directories)

    def check(self, fd: int, path: Path) -> None:
        """Refuses a file that was opened at a path, and lies elsewhere or is somebody else's.

        Raises:
            InvalidSource: says which.
        """
        if not self.holds(Path(os.readlink(f"/proc/self/fd/{fd}"))):
            raise InvalidSource(f"{path} leads out of its directory: put the file itself there")
        if self.owners is not None and os.fstat(fd).st_uid not in self.owners:
            raise InvalidSource(f"{path} belongs to another user than where sources may lie")
