"""What bringing instances up took on this node, by checkpoint and engine.

Checkpoints of exactly the same size count as variants of one model, whose starts take the same.
Most variants start rarely, and anything may hold a single start up; together they give a median.
"""

import statistics
from collections import OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

_WEIGHT = 0.4
"""Weight of the newest start in the running mean over all models."""
_KEPT = 512
"""Checkpoints and engines that are remembered, those started last."""
_STARTS = 9
"""The latest starts of a model and its variants, of which the medians are told."""


class InitKey(NamedTuple):
    """Starts that are told apart from others."""

    digest: str
    """Of the checkpoint, as it is published."""
    engine: str
    """Its name."""
    ready_made: bool = False
    """Whether they were over weights that were made ready for it."""


@dataclass(frozen=True, slots=True)
class InitTime:
    """What starts of one checkpoint with one engine take."""

    size_bytes: int
    """Of the checkpoint, in the form that they took."""
    prepare: float
    """Seconds for starting and preparing the worker, beside the load of the weights."""
    attach: float
    """Seconds from then on, with the weights in place, to a ready instance."""


_Kind = tuple[int, str, bool]
"""Size of a checkpoint, engine, and whether it was made ready: variants of one model."""


class InitTimes:
    """The observations of a node. Belongs to the event loop."""

    def __init__(self) -> None:
        self.mean: float | None = None
        """Seconds that a start takes besides the load, over all models. None: none yet."""
        self._sizes: OrderedDict[InitKey, int] = OrderedDict()
        self._starts: dict[_Kind, deque[InitTime]] = {}
        """The latest of each kind."""

    @property
    def times(self) -> Mapping[InitKey, InitTime]:
        """By checkpoint and engine."""
        medians = {kind: _median(starts) for kind, starts in self._starts.items()}
        return {key: medians[_kind(key, size)] for key, size in self._sizes.items()}

    def observe(self, key: InitKey, seen: InitTime) -> None:
        """Takes in a start that has succeeded."""
        self._sizes[key] = seen.size_bytes
        self._sizes.move_to_end(key)
        kind = _kind(key, seen.size_bytes)
        self._starts.setdefault(kind, deque(maxlen=_STARTS)).append(seen)
        if len(self._sizes) > _KEPT:
            self._forget_oldest()
        seconds = seen.prepare + seen.attach
        self.mean = seconds if self.mean is None else _mean(self.mean, seconds)

    def _forget_oldest(self) -> None:
        kind = _kind(*self._sizes.popitem(last=False))
        if all(kind != _kind(key, size) for key, size in self._sizes.items()):
            del self._starts[kind]


def _kind(key: InitKey, size_bytes: int) -> _Kind:
    return size_bytes, key.engine, key.ready_made


def _median(starts: deque[InitTime]) -> InitTime:
    return InitTime(
        starts[0].size_bytes,
        prepare=statistics.median(one.prepare for one in starts),
        attach=statistics.median(one.attach for one in starts),
    )


def _mean(before: float, newest: float) -> float:
    return before + _WEIGHT * (newest - before)
