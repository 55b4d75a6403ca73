"""What nodes of a fleet observe, for those that have not observed it themselves: the medians."""

import statistics
from bisect import bisect_left, insort
from collections import Counter, deque
from collections.abc import Iterable

from sllm.control.cluster.held import Held
from sllm.control.cluster.init_times import InitKey, InitTime, InitTimes
from sllm.control.cluster.nodes import NodeFacts, NodeView
from sllm.control.cluster.snapshot import Typical
from sllm.control.cluster.tiers import LinkKey
from sllm.control.cluster.zones import NOWHERE, Zones

_STARTS = 9
"""How many of the latest starts count. `Typical.slowness` is the median of their ratios: a start
that was held up by something of its own says nothing of the others."""
_MOST_OFF = 2.0
"""The largest factor, either way, that is taken for how things are."""
_NONE: frozenset[tuple[str, str]] = frozenset()


class Observations:
    """Keeps the medians at hand while nodes come, go and observe anew."""

    def __init__(self, zones: Zones = NOWHERE) -> None:
        self._zones = zones
        self._bandwidths: dict[LinkKey, _Sorted] = {}
        self._overall = _Sorted()
        self._init_times: dict[InitKey, dict[str, InitTime]] = {}
        self._typical_init_times = InitTimes()
        self._held: Counter[tuple[str, str]] = Counter()
        """How many nodes of each zone have all of each checkpoint."""
        self._typical: Typical | None = None
        self._slowness = 1.0
        self._ratios: deque[float] = deque(maxlen=_STARTS)

    def start_ended(self, estimate: float, actual: float) -> None:
        """Takes in how long a start has taken for which `estimate` was expected, in seconds.

        Machines are busier at times than they were when init times were observed, and what is not
        init takes time as well: the next estimates allow for it.
        """
        usual = max(estimate / self._slowness, 1e-3)
        self._ratios.append(actual / usual)
        median = statistics.median(self._ratios)
        self._slowness = min(_MOST_OFF, max(1 / _MOST_OFF, median))
        self._typical = None

    def hold(self, before: NodeView | None, after: NodeView | None) -> None:
        """Takes in of what a node has all, `after` in the place of `before`. None: of nothing."""
        had, has = _held_by(before), _held_by(after)
        self._held.update(has - had)
        self._held.subtract(had - has)
        gone = [one for one in had - has if not self._held[one]]
        for one in gone:
            del self._held[one]
        if gone or any(self._held[one] == 1 for one in has - had):
            self._typical = None

    def replace(self, before: NodeFacts | None, after: NodeFacts | None) -> None:
        """Takes in what a node tells, `after` in the place of `before`. None: it is not there."""
        if _told(before) == _told(after):
            return
        self._typical = None
        self._replace_speeds(before, after)
        old, new = _init_times_of(before), _init_times_of(after)
        if old is not new:
            self._replace_init_times((before or after).node_id, old, new)  # type: ignore[union-attr]

    def typical(self) -> Typical:
        """The medians now; the same object for as long as they are the same."""
        if self._typical is None:
            self._typical = Typical(
                {key: values.median for key, values in self._bandwidths.items() if len(values)},
                self._overall.median if len(self._overall) else None,
                self._typical_init_times,
                Held.of(self._held, self._zones),
                self._slowness,
            )
        return self._typical

    def _replace_speeds(self, before: NodeFacts | None, after: NodeFacts | None) -> None:
        for facts, change in ((before, _Sorted.remove), (after, _Sorted.add)):
            if facts is None:
                continue
            for key, speed in _speeds(facts).items():
                change(self._bandwidths.setdefault(key, _Sorted()), speed)
            if facts.init_time is not None:
                change(self._overall, facts.init_time)

    def _replace_init_times(self, node_id: str, before: InitTimes, after: InitTimes) -> None:
        medians = dict(self._typical_init_times.by_model)
        for key in before.by_model.keys() | after.by_model.keys():
            seen = self._init_times.setdefault(key, {})
            seen.pop(node_id, None)
            if key in after.by_model:
                seen[node_id] = after.by_model[key]
            if seen:
                medians[key] = _median_init_time(seen.values())
            else:
                del self._init_times[key]
                medians.pop(key, None)
        self._typical_init_times = InitTimes(medians)


class _Sorted:
    """Numbers in order."""

    def __init__(self) -> None:
        self._values: list[float] = []

    def __len__(self) -> int:
        return len(self._values)

    def add(self, value: float) -> None:
        insort(self._values, value)

    def remove(self, value: float) -> None:
        del self._values[bisect_left(self._values, value)]

    @property
    def median(self) -> float:
        """Of at least one value."""
        middle = len(self._values) // 2
        if len(self._values) % 2:
            return self._values[middle]
        return (self._values[middle - 1] + self._values[middle]) / 2


def _held_by(node: NodeView | None) -> frozenset[tuple[str, str]]:
    """Digests of what a node has all of, and its zone."""
    return frozenset((digest, node.facts.zone) for digest in node.copies.whole) if node else _NONE


def _init_times_of(facts: NodeFacts | None) -> InitTimes:
    return facts.init_times if facts else InitTimes()


def _speeds(facts: NodeFacts) -> dict[LinkKey, float]:
    """Of the links that bytes have crossed."""
    speeds = {key: link.bytes_per_second for key, link in facts.links.items()}
    return {key: speed for key, speed in speeds.items() if speed > 0}


def _told(facts: NodeFacts | None) -> object:
    return facts and (_speeds(facts), facts.init_time, facts.init_times)


def _median_init_time(times: Iterable[InitTime]) -> InitTime:
    seen = list(times)
    return InitTime(
        size_bytes=seen[0].size_bytes,
        prepare=statistics.median(one.prepare for one in seen),
        attach=statistics.median(one.attach for one in seen),
    )
