"""Weights that are still on their way while the model runs: each part waits for its own.

What is not there is not mapped. Whatever reads it all the same, past the parts that wait, is ended
by the kernel: nothing is ever computed of bytes that have not been checked.
"""

from collections.abc import Callable, Collection, Iterable
from threading import Condition
from typing import Any, Final

from sllm.errors import Cancelled, WorkerDied
from sllm.node.worker.model.mapping import Mapping
from sllm.node.worker.model.parts import Part

PATIENCE_SECONDS: Final = 300.0
"""For which a part waits without anything arriving."""


class Arrivals:
    """Chunks arrive in one thread, and are waited for in another, the engine's."""

    def __init__(
        self, mapping: Mapping, awaited: Iterable[int], patience: float = PATIENCE_SECONDS
    ) -> None:
        """Nothing of `mapping` that is `awaited`, by its index, is mapped yet."""
        self._mapping = mapping
        self._awaited = set(awaited)
        self._patience = patience
        self._changed = Condition()
        self._closed = False

    def stand_before(self, parts: Iterable[Part]) -> None:
        """Has each part wait for its chunks when it is first called; before anything runs."""
        for part in parts:
            if needed := self._awaited.intersection(chunks_of(part, self._mapping)):
                _Gate(self, part.module, frozenset(needed))

    def arrived(self, chunks: Iterable[int]) -> None:
        """Maps chunks, which are there and have been checked.

        Raises:
            OSError: The kernel refused a mapping.
        """
        there = sorted(self._awaited.intersection(chunks))
        self._mapping.bring(there)
        with self._changed:
            self._awaited.difference_update(there)
            self._changed.notify_all()

    def has(self, chunks: Collection[int]) -> bool:
        """Whether all of them are mapped."""
        with self._changed:
            return self._awaited.isdisjoint(chunks)

    def look_again(self) -> None:
        """Has those that wait see whether what they would rather have has come."""
        with self._changed:
            self._changed.notify_all()

    def wait_for(self, chunks: Collection[int], rather: Callable[[], bool] = lambda: False) -> None:
        """Returns once all of them are mapped, or `rather` is so; see `look_again`.

        Raises:
            WorkerDied: Nothing has arrived for a long time; requests may go on elsewhere.
            Cancelled: Nobody waits any more.
        """
        with self._changed:
            while not (rather() or self._awaited.isdisjoint(chunks)):
                if self._closed:
                    raise Cancelled("the model has ended before its weights were there")
                if not self._changed.wait(self._patience):
                    raise WorkerDied(
                        f"nothing of the weights that a layer waits for has come for "
                        f"{self._patience:g} s; {len(self._awaited)} chunks are lacking"
                    )

    def close(self) -> None:
        """Has nobody wait any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class _Gate:
    """Stands before a part until that was called once. Belongs to the engine's thread."""

    def __init__(self, arrivals: Arrivals, module: Any, needed: frozenset[int]) -> None:
        self._arrivals = arrivals
        self._needed = needed
        self._handle = module.register_forward_pre_hook(self._before)

    def _before(self, *_: object) -> None:
        self._arrivals.wait_for(self._needed)
        self._handle.remove()


def chunks_of(part: Part, mapping: Mapping) -> set[int]:
    """The chunks of a mapping that a part's weights lie in, if they lie there."""
    chunks = set[int]()
    for begin, end in part.spans:
        first, last = begin - mapping.address, end - 1 - mapping.address
        if first >= 0 and last < mapping.size_bytes:
            chunks.update(range(first // mapping.chunk_bytes, last // mapping.chunk_bytes + 1))
    return chunks
