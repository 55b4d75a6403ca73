"""What an import shares with others that have the same checkpoint, or are getting it."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sllm.checkpoint.files.memory import ChunkMemory
from sllm.checkpoint.importing.chunk_plan import ChunkPlan
from sllm.checkpoint.importing.journal import ChunkKey


@dataclass(frozen=True, slots=True)
class Turn:
    """A chunk whose turn it is, and who gives it."""

    chunk: int
    """Counted over all partitions."""
    giver: str | None = None
    """None: the import gets it from the source itself."""


@dataclass(frozen=True, slots=True)
class Contents:
    """An import that has begun: its chunks, and where those are that have arrived."""

    chunks: Sequence[ChunkPlan]
    written: Collection[ChunkKey]
    """Those that an earlier process has written, as far as that is known."""
    memory: ChunkMemory | None
    """Has them while the import lasts. None: they are in `files`."""
    files: Sequence[Path]
    """The partitions."""


class Exchange(Protocol):
    """Says which chunk comes next, and from whom, for any number of threads.

    Whoever has taken a turn says how it went: `fetch`, and then `arrived` or `failed`.
    """

    @property
    def expected(self) -> Mapping[ChunkKey, str]:
        """Digests that chunks must have, where that is known, whoever gives them."""

    def begin(self, contents: Contents) -> None:
        """Tells what is imported, before the first turn."""

    def take(self, check: Callable[[], object]) -> Turn:
        """The next turn. Waits for one, and calls `check` now and then, which may raise."""

    def fetch(self, turn: Turn, memory: memoryview, check: Callable[[], object]) -> str | None:
        """Fills a chunk's memory by its giver, and returns the digest.

        None: it has not given it, or not as it must be.
        """

    def arrived(self, turn: Turn, digest: str) -> None:
        """Tells that the chunk is where `Contents` says, and was checked."""

    def failed(self, turn: Turn) -> None:
        """Tells that the chunk has not come."""

    @property
    def doubted(self) -> Collection[int]:
        """Chunks that have come from others, and may not be what the source has."""

    def corrected(self, chunk: int, digest: str) -> None:
        """Tells that one of them was read from the source, and is where `Contents` says."""
