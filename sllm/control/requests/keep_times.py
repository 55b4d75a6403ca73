"""For how long each layer of an idle deployment is worth its memory: a pure function.

After RainbowCake (Yu et al., ASPLOS '24): what is warm is given up in layers. An instance holds
memory that its weights alone, kept in DRAM, do not; these hold memory that a copy on SSD does not.
Each layer stays for as long as what it costs is expected to be less than what it saves the next
request.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from sllm.control.requests.pauses import EDGES, Pauses

_POINTS: Final = (0.0, *EDGES)


@dataclass(frozen=True, slots=True)
class Layer:
    """What is given up at once, beyond the layers below it."""

    rent: float
    """What a second of keeping it costs, in seconds of waiting."""
    saving: float
    """Seconds that a request waits less for its being there."""
    longest: float = EDGES[-1]
    """Seconds that it stays at most."""

    def __add__(self, other: "Layer") -> "Layer":
        """Both, if they go together."""
        longest = min(self.longest, other.longest)
        return Layer(self.rent + other.rent, self.saving + other.saving, longest)


def keep_times(pauses: Pauses, layers: Sequence[Layer]) -> tuple[float, ...]:
    """Seconds for which each layer stays, from the first that goes to the last; they do not fall.

    Args:
        pauses: Of the deployment.
        layers: In the order in which they go.
    """
    survival = pauses.survival()
    # Where a layer would outlive the one below it, they go together, as one of both.
    groups: list[tuple[Layer, int, float]] = []
    for layer in layers:
        groups.append((layer, 1, _keep_time(survival, layer)))
        while len(groups) > 1 and groups[-2][2] > groups[-1][2]:
            (upper, above, _), (lower, below, _) = groups[-2:]
            both = upper + lower
            groups[-2:] = [(both, above + below, _keep_time(survival, both))]
    return tuple(time for _, count, time in groups for _ in range(count))


def _keep_time(survival: Sequence[float], layer: Layer) -> float:
    """Where the expected cost is least; of equals the longest: what costs nothing stays.

    Between the edges of buckets a pause is as likely to end at one moment as at another, so that
    the cost is a curve that is bent downwards, and least at one of its ends.
    """
    best, least, held = 0.0, layer.saving, 0.0
    for (begin, end), (first, last) in zip(pairwise(_POINTS), pairwise(survival), strict=True):
        if begin >= layer.longest:
            break
        until = min(end, layer.longest)
        chance = first + (last - first) * (until - begin) / (end - begin)
        held += (until - begin) * (first + chance) / 2
        cost = layer.rent * held + layer.saving * chance
        if cost <= least:
            best, least = until, cost
    return best
