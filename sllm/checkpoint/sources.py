"""Where checkpoints come from, and what is found there: safetensors directories."""

import json
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

import xxhash

from sllm.checkpoint.filling import WeightReader
from sllm.checkpoint.local_reader import LocalReader
from sllm.checkpoint.manifest import corrupt
from sllm.checkpoint.manifest_file import MANIFEST_FILE
from sllm.checkpoint.safetensors_header import TensorHeader, read_header
from sllm.errors import InvalidSource, SourceNotFound

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_CONFIG = "config.json"
_CARRIED = ("*.json", "*.jinja", "*.model", "*.tiktoken", "*.txt")
"""Configuration, tokenizer, vocabulary, merges and chat templates, by the names in use."""


class Origin(Protocol):
    """Where what was found at a source can be read."""

    @property
    def url(self) -> str:
        """The same for every way to write the source."""

    def open(self, weights: Sequence[Path]) -> AbstractContextManager[WeightReader]:
        """A reader of weights, for as long as the block lasts."""

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

    @property
    def url(self) -> str:
        """The same for every way to write the source."""
        return self.directory.as_uri()

    def open(self, weights: Sequence[Path]) -> LocalReader:
        """A reader of these files."""
        return LocalReader(weights)

    def current_fingerprint(self) -> str:
        """As `fingerprint`."""
        return fingerprint(self)


@dataclass(frozen=True, slots=True)
class SourceFiles:
    """What a source consists of."""

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
    """Bytes of all tensors, in the dtypes that they are stored in."""
    fingerprint: str
    """Changes when a file is added, removed or written to."""


def parse_source(text: str) -> LocalSource:
    """The source that a URL, or an absolute path, names.

    Raises:
        InvalidSource: it is of a kind that cannot be read.
    """
    parts = urlsplit(text)
    local = parts.scheme in ("", "file") and parts.netloc in ("", "localhost")
    path = text if not parts.scheme else unquote(parts.path)
    if not local or not path.startswith("/") or "\0" in path:
        raise InvalidSource(
            f"source {text!r} cannot be read: give the directory of a safetensors checkpoint as "
            "file:///path/to/model or as an absolute path"
        )
    return LocalSource(Path(path))


def fingerprint(source: LocalSource) -> str:
    """A digest over the names, sizes and times of change of a source's files. Reads no content.

    Raises:
        SourceNotFound: the directory is not there.
    """
    described = [
        (path.name, status.st_size, status.st_mtime_ns)
        for path in _list(source)
        if _matters(path.name)
        for status in [path.stat()]
    ]
    return xxhash.xxh3_128_hexdigest(json.dumps(described).encode())


def inspect(source: LocalSource) -> SourceFiles:
    """Reads the headers of a source's weights and lists what goes with them.

    Raises:
        SourceNotFound: the directory is not there.
        InvalidSource: it holds no model, or not in safetensors.
        CheckpointCorrupt: a file is cut short or contradicts itself; names the file.
    """
    files = find_files(source)
    if not any(path.name == _CONFIG for path in files.files):
        raise InvalidSource(f"{source.directory} has no {_CONFIG}: it is not a model's directory")
    return files


def find_files(source: LocalSource) -> SourceFiles:
    """As `inspect`, of a directory of safetensors files that need not be a model."""
    found = fingerprint(source)
    paths = _list(source)
    tensors = _tensors(source.directory, paths)
    return SourceFiles(
        origin=source,
        directory=source.directory,
        weights=tuple(dict.fromkeys(tensor.file for tensor in tensors)),
        tensors=tensors,
        files=tuple(path for path in paths if _is_carried(path.name)),
        size_bytes=sum(tensor.size for tensor in tensors),
        fingerprint=found,
    )


def read_tensors(directory: Path) -> tuple[TensorHeader, ...]:
    """The tensors of a directory's safetensors files, from their headers.

    Raises:
        SourceNotFound, InvalidSource, CheckpointCorrupt: as `inspect`.
    """
    return _tensors(directory, _list(LocalSource(directory)))


def _list(source: LocalSource) -> list[Path]:
    """The plain files of the directory, by name."""
    try:
        return sorted(path for path in source.directory.iterdir() if path.is_file())
    except (FileNotFoundError, NotADirectoryError):
        raise SourceNotFound(f"there is no directory {source.directory}") from None
    except PermissionError as error:
        raise InvalidSource(f"{source.directory} cannot be read: {error.strerror}") from error


def _matters(name: str) -> bool:
    return name.endswith((".safetensors", _INDEX)) or _is_carried(name)


def _is_carried(name: str) -> bool:
    """Not what describes the files themselves, here or in a checkpoint, nor hidden files."""
    describes = name == MANIFEST_FILE or name.endswith(".safetensors.index.json")
    carried = any(fnmatch(name, pattern) for pattern in _CARRIED)
    return carried and not describes and not name.startswith(".")


def _tensors(directory: Path, paths: Sequence[Path]) -> tuple[TensorHeader, ...]:
    """Of one file, or of the shards that an index names, or of whatever shards there are."""
    names = {path.name for path in paths}
    if _WEIGHTS in names:
        return read_header(directory / _WEIGHTS)
    if _INDEX in names:
        return _indexed_tensors(directory, names)
    shards = [path for path in paths if path.name.endswith(".safetensors")]
    if not shards:
        raise InvalidSource(f"{directory} has no *.safetensors files")
    return _distinct(tensor for shard in shards for tensor in read_header(shard))


def _distinct(tensors: Iterable[TensorHeader]) -> tuple[TensorHeader, ...]:
    found: dict[str, TensorHeader] = {}
    for tensor in tensors:
        other = found.setdefault(tensor.name, tensor)
        if other is not tensor:
            raise InvalidSource(
                f"{other.file.name} and {tensor.file.name} both hold {tensor.name!r}, and no "
                f"{_INDEX} in {tensor.file.parent} says which counts"
            )
    return tuple(found.values())


def _indexed_tensors(directory: Path, names: set[str]) -> tuple[TensorHeader, ...]:
    shard_of = _read_index(directory / _INDEX)
    for shard in sorted(set(shard_of.values()) - names):
        raise corrupt(directory / shard, f"named by {_INDEX}, but missing")
    shards = sorted(set(shard_of.values()))
    tensors = [tensor for shard in shards for tensor in read_header(directory / shard)]
    named = tuple(tensor for tensor in tensors if shard_of.get(tensor.name) == tensor.file.name)
    for name in sorted(shard_of.keys() - {tensor.name for tensor in named}):
        raise corrupt(directory / shard_of[name], f"has no tensor {name!r}, which {_INDEX} names")
    return named


def _read_index(path: Path) -> dict[str, str]:
    try:
        index: Any = json.loads(path.read_bytes())
        shard_of = dict(index["weight_map"])
    except (ValueError, TypeError, KeyError) as error:
        raise corrupt(path, f"not an index of shards: {error!r}") from error
    if not all(isinstance(shard, str) for shard in shard_of.values()):
        raise corrupt(path, "weight_map must lead from names to file names")
    return shard_of
