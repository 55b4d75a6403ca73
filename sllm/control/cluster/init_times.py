"""How long starts take beside and after the load of their weights, as nodes observed it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from sllm.control.cluster.linear_fit import Fit, Line


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
    """How long the latest starts of one checkpoint with one engine took."""

    size_bytes: int
    """Of the checkpoint, in the form that they took."""
    prepare: float
    """Seconds for starting and preparing the worker, beside the load of the weights."""
    attach: float
    """Seconds from then on, with the weights in place, to a ready instance."""


@dataclass(frozen=True)
class InitTimes:
    """All that one node has observed, and what that lets expect of other checkpoints."""

    by_model: Mapping[InitKey, InitTime] = field(default_factory=dict)

    def updated(self, newer: Mapping[InitKey, InitTime]) -> "InitTimes":
        """These, with newer observations in the place of older ones."""
        return InitTimes({**self.by_model, **newer}) if newer else self

    @cached_property
    def prepare(self) -> Line | None:
        """Seconds of `InitTime.prepare` by size in bytes. None: nothing was observed."""
        return _line((one.size_bytes, one.prepare) for one in self._telling)

    @cached_property
    def attach(self) -> Line | None:
        """Seconds of `InitTime.attach` by size in bytes. None: nothing was observed."""
        return _line((one.size_bytes, one.attach) for one in self._telling)

    @cached_property
    def _telling(self) -> tuple[InitTime, ...]:
        """What tells of others: starts over what is published, if there were any."""
        published = [one for key, one in self.by_model.items() if not key.ready_made]
        return tuple(published or self.by_model.values())


NO_INIT_TIMES = InitTimes()


def _line(points: Iterable[tuple[float, float]]) -> Line | None:
    fit = Fit()
    for x, y in points:
        fit = fit.observed(x, y)
    return fit.line
