"""Rounds: in each, every contender loads once or more, in an order that is drawn anew."""

import random
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from bench.disk import drop_from_page_cache
from bench.loading.contender import Group, Measurement, Outcome, Skipped
from bench.loading.models import Model
from bench.loading.node import DIRECT_PACKED, DIRECT_PLAIN, MEMCPY
from bench.loading.process import Contenders, contenders


class Cache(StrEnum):
    """Whether files are in the page cache when a load begins."""

    COLD = "cold"
    WARM = "warm"


NOT_IN = {Cache.COLD: {MEMCPY}, Cache.WARM: {DIRECT_PACKED, DIRECT_PLAIN}}
"""What says nothing there."""


@dataclass(slots=True)
class Results:
    """What came out."""

    model: Model
    rounds: list[dict[tuple[Cache, str], list[Outcome]]] = field(default_factory=list)

    def measured(self, cache: Cache, name: str) -> list[Measurement]:
        """Those of one contender that were not skipped."""
        return [one for done in self.measured_by_round(cache, name) for one in done]

    def measured_by_round(self, cache: Cache, name: str) -> list[list[Measurement]]:
        """The same, round by round."""
        return [
            [one for one in outcomes[cache, name] if isinstance(one, Measurement)]
            for outcomes in self.rounds
        ]

    def reason(self, cache: Cache, name: str) -> str:
        """Why a contender was skipped; empty if it never was."""
        everything = (one for outcomes in self.rounds for one in outcomes[cache, name])
        return next((one.reason for one in everything if isinstance(one, Skipped)), "")


def run_rounds(
    model: Model, tiny: Model, groups: Sequence[Group], caches: Sequence[Cache], rounds: int
) -> Results:
    """Measures all contenders with one model.

    Args:
        model: what is loaded.
        tiny: one of the same kind, to warm up with.
        groups: the contenders.
        caches: in each round one after the other.
        rounds: how many.
    """
    results = Results(model)
    with ExitStack() as stack:
        lasting = {
            group.names: stack.enter_context(contenders(group, tiny, model))
            for group in groups
            if group.lasting
        }
        for process in lasting.values():
            process.ready()
        for number in range(rounds):
            results.rounds.append(defaultdict(list))
            for cache in caches:
                for group, name in _in_turn(groups, cache, random.Random(number)):
                    outcome = _one(group, name, cache, tiny, model, lasting.get(group.names))
                    results.rounds[-1][cache, name].append(outcome)
                    _tell(model, number, cache, name, outcome)
    return results


def _in_turn(
    groups: Sequence[Group], cache: Cache, draw: random.Random
) -> Iterator[tuple[Group, str]]:
    pairs = [
        (group, name)
        for group in groups
        for name in group.names * group.repeats
        if name not in NOT_IN[cache]
    ]
    draw.shuffle(pairs)
    return iter(pairs)


def _one(
    group: Group, name: str, cache: Cache, tiny: Model, model: Model, lasting: Contenders | None
) -> Outcome:
    if lasting is not None:
        return _load(lasting, group.files(model, name), name, cache)
    with contenders(group, tiny, model) as process:
        skipped = process.ready()
        return skipped or _load(process, group.files(model, name), name, cache)


def _load(process: Contenders, files: Sequence[Path], name: str, cache: Cache) -> Outcome:
    skipped = process.prepare(name)
    drop_from_page_cache(files)
    if cache is Cache.WARM:
        _read_through(files)
    return skipped or process.measure(name)


def _read_through(files: Sequence[Path]) -> None:
    """Puts files into the page cache."""
    buffer = bytearray(4 << 20)
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def _tell(model: Model, number: int, cache: Cache, name: str, outcome: Outcome) -> None:
    what = f"{outcome.seconds:.2f} s" if isinstance(outcome, Measurement) else outcome.reason
    print(f"{model.name}, round {number + 1}, {cache}: {name}: {what}", file=sys.stderr)
