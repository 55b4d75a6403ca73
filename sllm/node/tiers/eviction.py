"""What is evicted from a tier when room is needed.

The idle checkpoint that is missed least goes first: the one for which the time to bring it back,
times how often it was used of late, is smallest for each byte that it frees. Before all others go
pages of KV caches, which can be computed again; and then those checkpoints whose next use is not
waited for any longer: the control plane says so when an instance ends. What was made ready of a
pinned checkpoint goes after all others: whoever pins wants starts to be short.
"""

from collections.abc import Callable, Mapping

Rank = tuple[bool, bool, bool, float]
"""Whether a checkpoint goes only when no other one can, whether it is one, whether its next use is
still waited for, and how much it would be missed for each byte. The least goes first."""


def choose_victims(
    idle: Mapping[str, int], lacking: int, rank: Callable[[str], Rank]
) -> tuple[str, ...]:
    """Those that free `lacking` bytes, and none that is not needed for it.

    Args:
        idle: Bytes of the checkpoints that may go, by digest.
        lacking: Bytes; none or less: nothing has to go.
        rank: In which order they go.
    """
    chosen: list[str] = []
    for digest in sorted(idle, key=rank):
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
