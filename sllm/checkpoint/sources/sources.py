"""Where checkpoints come from, and what is found there: safetensors, or a packed checkpoint."""

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

import xxhash

from sllm.bounds import without_secrets
from sllm.checkpoint.format.manifest import Manifest, TensorEntry
from sllm.checkpoint.format.manifest_file import MANIFEST_FILE, read_manifest
from sllm.checkpoint.format.room import Room
from sllm.checkpoint.format.safetensors_header import TensorHeader
from sllm.checkpoint.sources.directory import check_files, list_files, list_statuses
from sllm.checkpoint.sources.file_names import (
    ADAPTER_CONFIG,
    CONFIG,
    carried_name,
    is_carried,
    matters,
)
from sllm.checkpoint.sources.local_reader import LocalReader
from sllm.checkpoint.sources.remote_urls import (
    SCHEMES,
    HubRepository,
    RemoteDirectory,
    parse_remote,
)
from sllm.checkpoint.sources.shards import read_shards
from sllm.checkpoint.sources.weight_reader import WeightReader
from sllm.errors import InvalidSource


class Origin(Protocol):
    """Where what was found at a source can be read."""

    @property
    def url(self) -> str:
        """The same for every way to write the source."""

    def open(
        self, weights: Sequence[Path], cancelled: Callable[[], bool]
    ) -> AbstractContextManager[WeightReader]:
        """A reader of weights, for as long as the block lasts.

        Args:
            weights: the files.
            cancelled: asked while a read takes long whether to give it up.
        """

    def current_fingerprint(self) -> str:
        """`SourceFiles.fingerprint` as it would be now.

        Raises:
            SourceNotFound: it is gone.
            SourceUnavailable: it cannot be had now.
        """


@dataclass(frozen=True, slots=True)
class LocalSource:
    """A directory of this machine, or one mounted on it."""

    directory: Path
    room: Room | None = field(default=None, compare=False)
    """Where its files may lie. None: where the directory leads when one looks."""

    @property
    def url(self) -> str:
        """The same for every way to write the source."""
        return self.directory.as_uri()

    def open(self, weights: Sequence[Path], cancelled: Callable[[], bool]) -> LocalReader:
        """A reader of these files."""
        return LocalReader(weights, self.settled)

    @property
    def settled(self) -> Room:
        """Where its files may lie."""
        return self.room or Room.of(self.directory)

    def current_fingerprint(self) -> str:
        """As `fingerprint`."""
        return fingerprint(self)


@dataclass(frozen=True, slots=True, weakref_slot=True)
class SourceFiles:
    """What a source consists of. What was fetched of it is there for as long as this is."""

    origin: Origin
    """Where the weights are read."""
    directory: Path
    """Where the small files are."""
    weights: tuple[Path, ...]
    """The safetensors files; of a remote source, where they would be in the directory."""
    tensors: tuple[TensorHeader, ...]
    files: tuple[Path, ...]
    """Small files that go with the weights."""
    size_bytes: int
    """Bytes of all tensors, in the dtypes that they are stored in; of a checkpoint that was packed,
    those of its partitions."""
    fingerprint: str
    """Changes when a file is added, removed or written to."""
    packed: Manifest | None = None
    """Of a source that is a checkpoint already; its files of weights are its partitions."""
    room: Room | None = None
    """Where its files may lie. None: nobody else can write where they are."""


def parse_source(text: str) -> LocalSource | RemoteDirectory | HubRepository:
    """The source that a URL, or an absolute path, names.

    Raises:
        InvalidSource: it is of a kind that cannot be read.
    """
    try:
        parts = urlsplit(text)
    except ValueError as error:
        raise InvalidSource(f"source {without_secrets(text)!r} is no URL") from error
    if parts.scheme in SCHEMES:
        return parse_remote(text)
    local = parts.scheme in ("", "file") and parts.netloc in ("", "localhost")
    path = text if not parts.scheme else unquote(parts.path)
    if not local or not path.startswith("/") or "\0" in path:
        raise InvalidSource(
            f"source {without_secrets(text)!r} cannot be read: give the directory of a safetensors "
            "checkpoint as file:///path/to/model or as an absolute path, or a URL that begins with "
            + ", ".join(f"{scheme}://" for scheme in SCHEMES)
        )
    return LocalSource(Path(path))


def fingerprint(source: LocalSource) -> str:
    """A digest over the names, sizes and times of change of a source's files. Reads no content.

    Raises:
        SourceNotFound: the directory is not there.
    """
    described = [
        (carried_name(path), status.st_size, status.st_mtime_ns)
        for path, status in list_statuses(source.directory)
        if matters(path.name) or path.name == MANIFEST_FILE
    ]
    return xxhash.xxh3_128_hexdigest(json.dumps(described).encode())


def inspect(source: LocalSource) -> SourceFiles:
    """Reads the headers of a source's weights and lists what goes with them.

    A checkpoint that was packed is a source as well, and so is an adapter over another one.

    Raises:
        SourceNotFound: the directory is not there.
        InvalidSource: it holds no model or adapter, or not in safetensors.
        CheckpointCorrupt: a file is cut short or contradicts itself; names the file.
    """
    files = find(source)
    if not any(carried_name(path) in (CONFIG, ADAPTER_CONFIG) for path in files.files):
        raise InvalidSource(f"{source.directory} has no {CONFIG}: it is not a model's directory")
    return files


def find(source: LocalSource) -> SourceFiles:
    """As `inspect`, of what need not be a model or an adapter."""
    return _packed_files(source) if _is_packed(source) else find_files(source)


def _is_packed(source: LocalSource) -> bool:
    """Other programs have files of the manifest's name, too."""
    names = {path.name for path in list_files(source.directory)}
    return MANIFEST_FILE in names and any(name.startswith("partition-") for name in names)


def _packed_files(source: LocalSource) -> SourceFiles:
    found, source = fingerprint(source), replace(source, room=source.settled)
    directory, manifest = source.directory, read_manifest(source.directory, source.room)
    check_files(directory, [file.name for file in manifest.files])
    weights = tuple(directory / entry.file for entry in manifest.partitions)
    return SourceFiles(
        origin=source,
        directory=directory,
        weights=weights,
        tensors=tuple(_stored(entry, weights[entry.partition]) for entry in manifest.tensors),
        files=tuple(directory / file.name for file in manifest.files),
        size_bytes=manifest.size_bytes,
        fingerprint=found,
        packed=manifest,
        room=source.room,
    )


def _stored(entry: TensorEntry, file: Path) -> TensorHeader:
    return TensorHeader(entry.name, entry.dtype, entry.shape, file, entry.offset, entry.size)


def find_files(source: LocalSource) -> SourceFiles:
    """As `inspect`, of a directory of safetensors files that need not be a model."""
    found, source = fingerprint(source), replace(source, room=source.settled)
    paths = list_files(source.directory)
    tensors = read_shards(source.directory, paths, source.settled)
    return SourceFiles(
        origin=source,
        directory=source.directory,
        weights=tuple(dict.fromkeys(tensor.file for tensor in tensors)),
        tensors=tensors,
        files=tuple(path for path in paths if is_carried(path.name)),
        size_bytes=sum(tensor.size for tensor in tensors),
        fingerprint=found,
        room=source.room,
    )


def read_tensors(directory: Path) -> tuple[TensorHeader, ...]:
    """The tensors of a directory's safetensors files, from their headers.

    Raises:
        SourceNotFound, InvalidSource, CheckpointCorrupt: as `inspect`.
    """
    return read_shards(directory, list_files(directory), Room.of(directory))
