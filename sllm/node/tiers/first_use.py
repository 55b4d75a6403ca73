"""In which order a model uses the tensors of its checkpoint, and so the chunks that they lie in.

Seen when it first ran here, and kept beside the checkpoint. Nothing is written anew for it: a
checkpoint's digest covers how its tensors lie, and reading its chunks in another order costs a
disk nothing.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import structlog

from sllm.checkpoint.format.manifest import Manifest, TensorEntry
from sllm.node.tiers.disk_refusals import REFUSALS

_FILE = ".first-use.json"

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class FirstUse:
    """The order of a checkpoint's tensors."""

    tensors: tuple[int, ...]
    """Each once, by its index in `Manifest.tensors`, the one that is used first at the beginning.
    Those that were not used come last."""
    at_once: int
    """So many of them, the first ones, must be there before the model is made."""

    def never_early(self) -> "FirstUse":
        """The same order for a model that has read weights before they were waited for."""
        return FirstUse(self.tensors, len(self.tensors))


@dataclass(frozen=True, slots=True)
class ChunkOrder:
    """The order of a checkpoint's chunks, counted over all its partitions."""

    chunks: tuple[int, ...]
    at_once: frozenset[int]
    """Those that must be there before the model is made."""


def chunk_order(manifest: Manifest, use: FirstUse | None) -> ChunkOrder:
    """In which order chunks are read. Of a model that has not run, as they lie, and all at once."""
    every = range(sum(entry.chunk_count for entry in manifest.partitions))
    if use is None:
        return ChunkOrder(tuple(every), frozenset(every))
    by_use = [manifest.tensors[index] for index in use.tensors]
    at_once = frozenset(chunks_of(manifest, by_use[: use.at_once]))
    return ChunkOrder(tuple(dict.fromkeys((*chunks_of(manifest, by_use), *every))), at_once)


def chunks_of(manifest: Manifest, tensors: Sequence[TensorEntry]) -> Iterator[int]:
    """The chunks that tensors lie in, counted over all partitions, tensor by tensor."""
    starts = [0, *accumulate(entry.chunk_count for entry in manifest.partitions)]
    for one in tensors:
        start, size = starts[one.partition], manifest.partitions[one.partition].chunk_size
        if one.size:
            last = (one.offset + one.size - 1) // size
            yield from range(start + one.offset // size, start + last + 1)


def check(use: FirstUse, manifest: Manifest) -> None:
    """Refuses what does not tell of each tensor of a checkpoint once.

    Raises:
        ValueError: it does not.
    """
    if not all(type(number) is int for number in (*use.tensors, use.at_once)):
        raise ValueError("the order of first use has what is no whole number")
    if sorted(use.tensors) != list(range(len(manifest.tensors))):
        raise ValueError("the order of first use does not name each tensor once")
    if not 0 <= use.at_once <= len(use.tensors):
        raise ValueError(f"{use.at_once} of {len(use.tensors)} tensors cannot be used at once")


def write(directory: Path, use: FirstUse) -> None:
    """Keeps it beside a checkpoint. If that is lost, it is seen anew."""
    path = directory / _FILE
    temporary = path.with_suffix(".new")
    try:
        temporary.write_text(json.dumps({"tensors": use.tensors, "at_once": use.at_once}))
        temporary.rename(path)
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        _log.warning("node.first_use_not_kept", directory=str(directory), problem=str(error))


def read(directory: Path, manifest: Manifest) -> FirstUse | None:
    """What was kept. None: nothing was, or it is of no use."""
    try:
        kept = json.loads((directory / _FILE).read_bytes())
        use = FirstUse(tuple(kept["tensors"]), kept["at_once"])
        check(use, manifest)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        _log.info("node.first_use_unknown", directory=str(directory), problem=str(error))
        return None
    return use
