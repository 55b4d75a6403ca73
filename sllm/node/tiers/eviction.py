"""What is evicted from a tier when room is needed.

The idle checkpoint that is missed least goes first: the one for which the time to bring it back,
times how often it was used of late, is smallest for each byte that it frees.
"""

from collections.abc import Callable, Mapping


def choose_victims(
    idle: Mapping[str, int], lacking: int, worth: Callable[[str], float]
) -> tuple[str, ...]:
    """Those that free `lacking` bytes, and none that is not needed for it.

    Args:
        idle: Bytes of the checkpoints that may go, by digest.
        lacking: Bytes; none or less: nothing has to go.
        worth: How much a checkpoint would be missed, for each byte.
    """
    chosen: list[str] = []
    for digest in sorted(idle, key=worth):
        if lacking <= 0:
            break
        chosen.append(digest)
        lacking -= idle[digest]
    # One that was chosen late may free so much that some before it can stay.
    for digest in reversed(chosen):
        if lacking + idle[digest] <= 0:
            chosen.remove(digest)
            lacking += idle[digest]
    return tuple(chosen)
