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
class FormGivers:
    """Those that have made a checkpoint's weights ready in one form."""

    form: str
    """See `WeightForm.name`."""
    givers: Givers
    """With the digest of what was made."""


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


@dataclass(frozen=True, slots=True)
class Helpers:
    """Other nodes of which one is told that starts an instance."""

    givers: Givers | None = None
    """To have its weights from. None: it has them, or nobody does."""
    loan: Loan | None = None
    """Who computes layers until they are there. None: nobody."""
    forms: tuple[FormGivers, ...] = ()
    """To have from what was made of its weights."""


NO_HELPERS = Helpers()
