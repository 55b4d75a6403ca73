"""What a remote source consists of at one moment."""

import json
from collections.abc import Iterable
from dataclasses import dataclass

import xxhash


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a remote source."""

    name: str
    size: int
    """Bytes."""
    tag: str | None
    """Changes with the content; None: the server tells nothing of the kind."""


@dataclass(frozen=True, slots=True)
class Listing:
    """A remote source's files."""

    files: tuple[RemoteFile, ...]
    """By name."""

    @property
    def names(self) -> set[str]:
        """Those of all files."""
        return {file.name for file in self.files}

    def __getitem__(self, name: str) -> RemoteFile:
        """The file of a name that is there."""
        return next(file for file in self.files if file.name == name)

    def digest(self) -> str:
        """Changes when a file is added, removed or written to."""
        described = [(file.name, file.size, file.tag) for file in self.files]
        return xxhash.xxh3_128_hexdigest(json.dumps(described).encode())


def make_listing(files: Iterable[RemoteFile]) -> Listing:
    """The listing of these files."""
    return Listing(tuple(sorted(files, key=lambda file: file.name)))
