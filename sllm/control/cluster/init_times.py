"""How long starts take beside and after the load of their weights, as nodes observed it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from sllm.control.cluster.linear_fit import Fit, Line

InitKey = tuple[str, str]
"""A checkpoint's digest and an engine's name."""


@dataclass(frozen=True, slots=True)
class InitTime:
    """How long the latest starts of one checkpoint with one engine took."""

    size_bytes: int
    """Of the checkpoint."""
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
        return _line((one.size_bytes, one.prepare) for one in self.by_model.values())

    @cached_property
    def attach(self) -> Line | None:
        """Seconds of `InitTime.attach` by size in bytes. None: nothing was observed."""
        return _line((one.size_bytes, one.attach) for one in self.by_model.values())


NO_INIT_TIMES = InitTimes()


def _line(points: Iterable[tuple[float, float]]) -> Line | None:
    fit = Fit()
    for x, y in points:
        fit = fit.observed(x, y)
    return fit.line
