"""What has come of a checkpoint so far, for those who have it from here."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from sllm.checkpoint.importing.chunk_plan import ChunkPlan
from sllm.checkpoint.importing.exchange import Contents
from sllm.node.peers.news import News
from sllm.node.tiers.types import Tier


@dataclass(frozen=True, slots=True)
class Arrived:
    """Where a chunk can be read that has arrived."""

    plan: ChunkPlan
    memory: memoryview | None
    """None: it is in the file."""
    file: Path | None


@dataclass(frozen=True, slots=True)
class Heard:
    """How much of it somebody has been told."""

    arrived: int = 0
    begun: int = 0
    left: int = 0
    asked: int = 0


class Arrivals:
    """Chunks in the order of their arrival, and what else others are to know. For all threads."""

    def __init__(self, layout: str) -> None:
        """`layout`: see `News.layout`."""
        self._layout = layout
        self._lock = Lock()
        self._contents: Contents | None = None
        self._arrived: list[int] = []
        self._digests: dict[int, str] = {}
        """Of the same."""
        self._begun: list[int] = []
        self._left: list[tuple[int, str]] = []
        self._asked: list[str] = []
        self._watchers: list[Callable[[], None]] = []

    def begin(self, contents: Contents, written: Sequence[int]) -> None:
        """Tells where chunks will be, and which need only be looked at: nobody else gets them."""
        with self._lock:
            self._contents = contents
            self._begun.extend(written)

    def add(self, chunk: int, digest: str) -> None:
        """A chunk has come, and was checked."""
        with self._lock:
            self._arrived.append(chunk)
            self._digests[chunk] = digest
        self._tell()

    def began(self, chunk: int) -> None:
        """A chunk is being got for all."""
        with self._lock:
            self._begun.append(chunk)
        self._tell()

    def leave(self, chunks: Collection[int], name: str) -> None:
        """Chunks are left to a node to get for all."""
        with self._lock:
            self._left.extend((chunk, name) for chunk in chunks)
        self._tell()

    def ask(self, name: str) -> None:
        """A node is asked to leave some to this one."""
        with self._lock:
            self._asked.append(name)
        self._tell()

    @property
    def now(self) -> Heard:
        """What somebody need not be told who comes now: who was asked before."""
        with self._lock:
            return Heard(asked=len(self._asked))

    def news(self, heard: Heard, manifest: bytes = b"") -> tuple[News, Heard]:
        """What somebody has not heard, and what that one has heard then."""
        with self._lock:
            arrived, begun = self._arrived[heard.arrived :], self._begun[heard.begun :]
            left, asked = self._left[heard.left :], self._asked[heard.asked :]
            news = News(
                Tier.REMOTE,
                arrived={chunk: self._digests[chunk] for chunk in arrived},
                begun=begun,
                manifest=manifest,
                left=dict(left),
                asks=asked[-1] if asked else "",
                layout=self._layout,
            )
            return news, Heard(
                len(self._arrived), len(self._begun), len(self._left), len(self._asked)
            )

    def where(self, chunk: int) -> Arrived | None:
        """Where a chunk can be read now. None: it has not arrived."""
        with self._lock:
            contents = self._contents
            if contents is None or chunk not in self._digests:
                return None
        plan = contents.chunks[chunk]
        if contents.memory is None:
            return Arrived(plan, None, contents.files[plan.partition])
        return Arrived(plan, contents.memory(plan.partition, plan.index)[: plan.size], None)

    def watch(self, changed: Callable[[], None]) -> Callable[[], None]:
        """Calls `changed`, in any thread, after each change; returns what ends that."""
        with self._lock:
            self._watchers.append(changed)
        return lambda: self._unwatch(changed)

    def _unwatch(self, changed: Callable[[], None]) -> None:
        with self._lock:
            self._watchers.remove(changed)

    def _tell(self) -> None:
        with self._lock:
            watchers = tuple(self._watchers)
        for changed in watchers:
            changed()

    def close(self) -> None:
        """Nothing is to be read any more."""
        with self._lock:
            self._contents = None
        self._tell()
