"""Names of what prompts begin with, by which nodes tell what they keep of them, computed.

Whoever chooses a node has no tokenizer, so they are of the prompt as it came. Lengths grow by a
factor: however long a prompt is, it has a few dozen names, and the longest that it shares with
another one covers four fifths of what they share, or more.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import xxhash

_SHORTEST: Final = 256
"""Bytes: what is shorter is computed as soon as it is looked up."""
_LONGEST: Final = 4 * 1024 * 1024
"""Bytes: what comes behind has no name."""
_GROWTH: Final = 1.25


def _lengths() -> Iterator[int]:
    length = float(_SHORTEST)
    while length <= _LONGEST:
        yield int(length)
        length *= _GROWTH


LENGTHS: Final = tuple(_lengths())
"""Bytes that each name covers, from the prompt's beginning."""


@dataclass(frozen=True, slots=True)
class Keeper:
    """A node that keeps what was computed of a prompt."""

    node_id: str
    address: str
    """host:port."""
    saved_seconds: float
    """What that saves there."""


@dataclass(frozen=True, slots=True)
class Prefixes:
    """What a prompt begins with."""

    names: tuple[int, ...] = ()
    """Of 64 bits, one for each of `LENGTHS` that it has."""
    size_bytes: int = 0
    """Of the prompt."""
    keeper: Keeper | None = None
    """Another node that keeps more of it than the one that serves it. None: none does."""

    def shares(self) -> Iterator[tuple[int, float]]:
        """Each name with how much of the prompt it covers, 0 to 1."""
        for name, length in zip(self.names, LENGTHS, strict=False):
            yield name, length / self.size_bytes


NAMELESS: Final = Prefixes()
"""Of a prompt that is short, or told by more than its bytes."""


def prefixes_of(whose: str, parts: Iterable[bytes]) -> Prefixes:
    """Of a prompt's bytes, which begin as those do of whatever goes on with it.

    Args:
        whose: Nobody else's prompts have the same names.
        parts: All of them.
    """
    state, size = xxhash.xxh3_64(whose.encode()), 0
    names: list[int] = []
    for part in parts:
        begin, end = 0, size + len(part)
        while len(names) < len(LENGTHS) and (length := LENGTHS[len(names)]) <= end:
            state.update(part[begin : length - size])
            begin = length - size
            names.append(state.intdigest())
        if len(names) < len(LENGTHS):
            state.update(part[begin:])
        size = end
    return Prefixes(tuple(names), size)
