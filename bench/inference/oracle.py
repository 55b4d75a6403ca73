"""What a bounded memory could have had at best, by one who knows what comes (Belady, 1966)."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_NEVER = np.iinfo(np.intp).max


def share_there(asked: Sequence[NDArray[np.intp]], capacity: int, skipped: int) -> float:
    """Of what was asked for, the most that any choice could have had there.

    Args:
        asked: for one step and layer after the other, the numbers of what it used.
        capacity: how many may be there at once.
        skipped: steps and layers at the beginning that are not counted.
    """
    again = _next_uses(asked)
    there = np.zeros(again.shape[1], bool)
    used = missed = 0
    for place, needed in enumerate(asked):
        missing = needed[~there[needed]]
        there[needed] = True
        if (over := int(there.sum()) - capacity) > 0:
            idle = np.setdiff1d(np.flatnonzero(there), needed)
            there[idle[np.argsort(-again[place][idle], kind="stable")[:over]]] = False
        if place >= skipped:
            used += len(needed)
            missed += len(missing)
    return 1 - missed / used


def _next_uses(asked: Sequence[NDArray[np.intp]]) -> NDArray[np.intp]:
    """After each step and layer, when each is used again."""
    count = 1 + max(int(one.max()) for one in asked)
    again = np.full((len(asked) + 1, count), _NEVER, np.intp)
    for place in reversed(range(len(asked))):
        again[place] = again[place + 1]
        again[place, asked[place]] = place
    return again[1:]
