"""What bringing instances up took on this node, by checkpoint and engine."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

_WEIGHT = 0.4
"""Weight of the newest start in the running means."""
_KEPT = 512
"""Checkpoints and engines that are remembered, those started last."""

InitKey = tuple[str, str]
"""A checkpoint's digest and an engine's name."""


@dataclass(frozen=True, slots=True)
class InitTime:
    """Running means of the starts of one checkpoint with one engine."""

    size_bytes: int
    """Of the checkpoint."""
    prepare: float
    """Seconds for starting and preparing the worker, beside the load of the weights."""
    attach: float
    """Seconds from then on, with the weights in place, to a ready instance."""


class Inits:
    """The observations of a node. Belongs to the event loop."""

    def __init__(self) -> None:
        self.mean: float | None = None
        """Seconds that a start takes besides the load, over all models. None: none yet."""
        self._times: OrderedDict[InitKey, InitTime] = OrderedDict()

    @property
    def times(self) -> Mapping[InitKey, InitTime]:
        """By checkpoint and engine."""
        return self._times

    def observe(self, key: InitKey, seen: InitTime) -> None:
        """Takes in a start that has succeeded."""
        known = self._times.pop(key, seen)
        self._times[key] = InitTime(
            seen.size_bytes, _mean(known.prepare, seen.prepare), _mean(known.attach, seen.attach)
        )
        if len(self._times) > _KEPT:
            self._times.popitem(last=False)
        seconds = seen.prepare + seen.attach
        self.mean = seconds if self.mean is None else _mean(self.mean, seconds)


def _mean(before: float, newest: float) -> float:
    return before + _WEIGHT * (newest - before)
