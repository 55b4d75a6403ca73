"""Pages of an engine's KV cache, as they leave it and come back."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from sllm.node.worker.engine.adapters import Adapter


@dataclass(frozen=True, slots=True)
class PageLayout:
    """What a page is."""

    name: str
    """Of the engine, its versions, the model's shape and the dtype: engines that say the same can
    use each other's pages."""
    tokens: int
    size_bytes: int
    dtype: str = ""
    """Of the numbers in it, as torch names it. Empty: they are nothing but bytes."""


@dataclass(frozen=True, slots=True)
class Prefix:
    """Tokens whose keys and values follow from them alone, and from the adapter."""

    tokens: tuple[int, ...]
    adapter: Adapter | None = None


class EnginePages(Protocol):
    """The cache of an engine that runs. All may be called from any thread but the engine's.

    Pages are never changed once they are whole, and the engine uses those that are in its cache for
    every request whose prompt begins with their tokens. What is put in may go at any time, as what
    requests have left does.
    """

    @property
    def layout(self) -> PageLayout:
        """What a page is."""
        ...

    @property
    def seconds_per_token(self) -> float | None:
        """Of computing a prompt, as seen of late. None: it has computed none."""
        ...

    def subscribe(self, on_end: Callable[[Prefix], None]) -> None:
        """Has `on_end` be told what each request leaves in the cache, in the engine's thread."""
        ...

    def present(self, prefix: Prefix) -> int:
        """How many whole pages of a prefix, from the first, are in the cache now."""
        ...

    def put(self, prefix: Prefix, first: int, pages: Sequence[memoryview], holder: str) -> int:
        """Puts pages into the cache, as many of them as there is room for; gives how many.

        Args:
            prefix: that they are of.
            first: index of the first of them.
            pages: their bytes.
            holder: a request: they stay until it is scheduled, or `let_go` is called.
        """
        ...

    def let_go(self, holder: str) -> None:
        """Tells that a request does not need what was put in for it.

        Once it is scheduled it has taken that.
        """
        ...

    def copy(self, prefix: Prefix, wanted: Sequence[int], into: Sequence[memoryview]) -> list[bool]:
        """Copies whole pages out of the cache; gives which of them were still there.

        Args:
            prefix: that they are of.
            wanted: their indices.
            into: for each, where it goes.
        """
        ...
