"""Other nodes that a node has a checkpoint from."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Giver:
    """A node to have a checkpoint from."""

    node_id: str
    address: str
    fellow: bool = False
    """Whether it is getting it as well."""


@dataclass(frozen=True, slots=True)
class Givers:
    """Those that a node is told of, the best first."""

    digest: str
    """Of the checkpoint. Empty: nobody has it yet."""
    givers: tuple[Giver, ...]


@dataclass(frozen=True, slots=True)
class Lender:
    """A node that computes layers for another, until that has read their weights."""

    node_id: str
    address: str
    share: float
    """Of the bytes of all layers, the part that it reads; between 0 and 1."""


@dataclass(frozen=True, slots=True)
class Loan:
    """Those who do so for one start."""

    lenders: tuple[Lender, ...]
    gain: float
    """Seconds by which the first token is expected sooner."""
