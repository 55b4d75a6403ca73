"""What one more instance is taken to take of a node's memory for itself."""

from collections.abc import Hashable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Taken:
    """What one instance takes."""

    kind: Hashable
    """The same for instances of one checkpoint on one engine, and for no others."""
    own_bytes: int
    """As measured. 0: not yet."""
    private_bytes: int | None = None
    """Of that, for copies of its own, as estimated beforehand. None: not known."""


def expected(
    kind: Hashable, private_bytes: int | None, present: Iterable[Taken], otherwise: int
) -> int:
    """Bytes: the most that was measured of the same kind, or else what is known of others.

    Args:
        kind: Of the instance.
        private_bytes: For copies of its own, as estimated. None: not known.
        present: The instances on the node.
        otherwise: Beside copies, where nothing was measured.
    """
    measured = [one for one in present if one.own_bytes]
    if most := max((one.own_bytes for one in measured if one.kind == kind), default=0):
        return most
    if private_bytes is None:
        return _mean(measured) or otherwise
    return (_mean_beside_copies(measured) or otherwise) + private_bytes


def _mean_beside_copies(measured: list[Taken]) -> int:
    """Of those that copy little: what is foretold of copies is on the high side."""
    found = [(one.own_bytes, one.private_bytes or 0) for one in measured]
    plain = [own - copies for own, copies in found if copies <= own // 2]
    return sum(plain) // max(1, len(plain))


def _mean(measured: list[Taken]) -> int:
    return sum(one.own_bytes for one in measured) // max(1, len(measured))
