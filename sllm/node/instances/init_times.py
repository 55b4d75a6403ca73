"""What bringing instances up took on this node, by checkpoint and engine.

Checkpoints of exactly the same size count as variants of one model, whose starts take the same.
Most variants start rarely, and anything may hold a single start up; together they give a median.
"""

import statistics
from collections import OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass

_WEIGHT = 0.4
"""Weight of the newest start in the running mean over all models."""
_KEPT = 512
"""Checkpoints and engines that are remembered, those started last."""
_STARTS = 9
"""The latest starts of a model and its variants, of which the medians are told."""

InitKey = tuple[str, str]
"""A checkpoint's digest and an engine's name."""


@dataclass(frozen=True, slots=True)
class InitTime:
    """What starts of one checkpoint with one engine take."""

    size_bytes: int
    """Of the checkpoint."""
    prepare: float
    """Seconds for starting and preparing the worker, beside the load of the weights."""
    attach: float
    """Seconds from then on, with the weights in place, to a ready instance."""


class InitTimes:
    """The observations of a node. Belongs to the event loop."""

    def __init__(self) -> None:
        self.mean: float | None = None
        """Seconds that a start takes besides the load, over all models. None: none yet."""
        self._sizes: OrderedDict[InitKey, int] = OrderedDict()
        self._starts: dict[tuple[int, str], deque[InitTime]] = {}
        """The latest of each size and engine."""

    @property
    def times(self) -> Mapping[InitKey, InitTime]:
        """By checkpoint and engine."""
        medians = {kind: _median(starts) for kind, starts in self._starts.items()}
        return {(key, engine): medians[size, engine] for (key, engine), size in self._sizes.items()}

    def observe(self, key: InitKey, seen: InitTime) -> None:
        """Takes in a start that has succeeded."""
        self._sizes[key] = seen.size_bytes
        self._sizes.move_to_end(key)
        kind = seen.size_bytes, key[1]
        self._starts.setdefault(kind, deque(maxlen=_STARTS)).append(seen)
        if len(self._sizes) > _KEPT:
            self._forget_oldest()
        seconds = seen.prepare + seen.attach
        self.mean = seconds if self.mean is None else _mean(self.mean, seconds)

    def _forget_oldest(self) -> None:
        (_, engine), size = self._sizes.popitem(last=False)
        if all((size, engine) != (other, key[1]) for key, other in self._sizes.items()):
            del self._starts[size, engine]


def _median(starts: deque[InitTime]) -> InitTime:
    return InitTime(
        starts[0].size_bytes,
        prepare=statistics.median(one.prepare for one in starts),
        attach=statistics.median(one.attach for one in starts),
    )


def _mean(before: float, newest: float) -> float:
    return before + _WEIGHT * (newest - before)
