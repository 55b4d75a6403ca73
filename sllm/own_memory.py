"""What one more instance is taken to take of a node's memory for itself."""

from collections.abc import Iterable


def expected(same: Iterable[int], others: Iterable[int], otherwise: int) -> int:
    """Bytes, from what was measured of instances on the node; zeros are of those not yet measured.

    Args:
        same: Of instances of the same model: the most counts.
        others: Of all others: their mean counts, where there is none of the same.
        otherwise: Where nothing was measured.
    """
    if most := max(same, default=0):
        return most
    measured = [size for size in others if size]
    return sum(measured) // len(measured) if measured else otherwise
