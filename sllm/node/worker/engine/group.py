"""The processes that run one model together, each on its part of the weights."""

from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from socket import socket
from typing import Final


@dataclass(frozen=True, slots=True)
class Rank:
    """One of them."""

    index: int
    """The first, 0, runs the engine, and the others do what it tells them."""
    size: int
    """How many there are."""
    store_fd: int = -1
    """An empty file without a name, the same in all of them, by which they find each other."""
    memory_fd: int = -1
    """Memory without a name that they share; see `exchange.shared_bytes`."""
    peers: dict[int, socket] = field(default_factory=dict)
    """Sockets to the others, by their index."""


@dataclass(frozen=True, slots=True)
class Group:
    """All of them, as the first has them."""

    rank: Rank
    others: tuple[Connection, ...] = ()
    """Pipes to the others, in their order."""


ALONE: Final = Group(Rank(0, 1))
"""A model in one process."""
