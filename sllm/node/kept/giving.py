"""Pages that are kept here, given to other nodes, as far as this node's own loads leave time."""

import asyncio
import itertools
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from sllm.clock import Clock
from sllm.node.kept.kept_pages import KeptPages
from sllm.node.kept.records import PageLease
from sllm.node.peers.turns import Turn
from sllm.node.tiers.pool import Pool

PIECE_BYTES: Final = 256 << 10
"""In one message."""
_STREAMS: Final = 4
"""Callers that are given pages at a time; more wait for their turns. Each leases what it gets."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of pages that follow one another."""

    digests: tuple[bytes, ...]
    """Of the pages that begin in it."""
    data: bytes


_LATER: Final = Piece((), b"")
"""A sign of life: there will be more."""


class PageGiver:
    """Belongs to the event loop."""

    def __init__(
        self, kept: KeptPages, pool: Pool, clock: Clock, is_busy: Callable[[], bool]
    ) -> None:
        """Gives nothing yet.

        Args:
            kept: finds pages.
            pool: has them.
            clock: tells what giving takes.
            is_busy: whether a request waits for a load of this node.
        """
        self._kept = kept
        self._pool = pool
        self._clock = clock
        self._is_busy = is_busy
        self._turns = asyncio.Semaphore(_STREAMS)

    async def pieces(self, keys: Sequence[bytes], page_bytes: int) -> AsyncGenerator[Piece]:
        """Pages of this size, in the order of their keys, up to the first that is not here.

        Pieces without bytes come now and then while others have their turns.
        """
        turn = Turn(self._turns)
        try:
            async for _ in turn.wait():
                yield _LATER
            lease = await self._kept.find_all(keys)
            try:
                for piece in self._pieces(lease, page_bytes):
                    began = self._clock.now()
                    with turn.giving():
                        yield piece
                    async for _ in turn.pause(self._clock, began, is_busy=self._is_busy()):
                        yield _LATER
            finally:
                self._kept.release(lease)
        finally:
            turn.release()

    def _pieces(self, lease: PageLease, size: int) -> Iterator[Piece]:
        pairs = zip(lease.places, lease.segments, strict=True)
        same = itertools.takewhile(lambda pair: pair[1].page_bytes == size, pairs)
        places = [place for place, _ in same]
        views = [self._pool.view(one.chunk)[one.offset : one.offset + size] for one in places]
        return cut([place.digest for place in places], views, PIECE_BYTES)


def cut(digests: Sequence[bytes], pages: Sequence[memoryview], piece_bytes: int) -> Iterator[Piece]:
    """Several whole pages a piece, or several pieces a page, as their size has it."""
    together = max(1, piece_bytes // len(pages[0])) if pages else 1
    for first in range(0, len(pages), together):
        few = slice(first, first + together)
        if together > 1:
            yield Piece(tuple(digests[few]), b"".join(pages[few]))
            continue
        for begin in range(0, len(pages[first]), piece_bytes):
            data = bytes(pages[first][begin : begin + piece_bytes])
            yield Piece(() if begin else tuple(digests[few]), data)
