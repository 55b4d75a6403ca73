"""Other nodes that have a checkpoint, and the way to them."""

from collections.abc import Callable
from dataclasses import dataclass, field

import grpc


@dataclass(frozen=True, slots=True)
class Peer:
    """Another node that has a checkpoint, or is getting it."""

    node_id: str
    address: str
    """host:port."""
    fellow: bool = False
    """Whether it is getting it as well, and shares the work of that."""


@dataclass(frozen=True, slots=True)
class Peers:
    """Other nodes to have a checkpoint from."""

    peers: tuple[Peer, ...]
    digest: str = ""
    """Of the checkpoint. Empty: nobody knows it yet."""


@dataclass(frozen=True, slots=True)
class FormPeers:
    """Other nodes that hold a checkpoint as it was made ready."""

    form: str
    """What it was made ready for; see `WeightForm.name`."""
    peers: Peers
    """With the digest of what was made."""


@dataclass(frozen=True, slots=True)
class Lender:
    """Another node that computes layers until this one has their weights."""

    peer: Peer
    share: float
    """Of the bytes of all layers, the part that it is to have."""


@dataclass(slots=True)
class Network:
    """How this node meets others."""

    node_id: str
    dial: Callable[[str], grpc.Channel]
    """Makes a channel for threads, to host:port."""
    address: str = field(default="")
    """host:port at which others reach this node, once it listens."""
