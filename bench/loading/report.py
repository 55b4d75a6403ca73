"""What the rounds say: tables, and the main figures."""

import statistics
from collections.abc import Callable, Sequence
from math import isnan

from bench.loading.contender import Measurement
from bench.loading.node import (
    ATTACH,
    DIGESTS,
    DIRECT_PACKED,
    DIRECT_PLAIN,
    IN_PLACE,
    LIBRARY_GROUP,
    MEMCPY,
    NO_DIGESTS,
    NODE,
    NODE_GROUP,
    PLAIN,
)
from bench.loading.peers import IN_PAGE_CACHE, PEERS
from bench.loading.rounds import NOT_IN, Cache, Results
from bench.report import print_table

GB = 1e9
COLUMNS = (
    "contender",
    "resident, s",
    "call, s",
    "GB/s",
    "of ceiling",
    "CPU, s",
    "peak, GB",
    "faults",
)
_OURS = {*NODE_GROUP.names, *LIBRARY_GROUP.names}
_PEER_NAMES = [name for group in PEERS for name in group.names if name != IN_PAGE_CACHE]


def print_results(results: Results, caches: Sequence[Cache], rounds: int) -> None:
    """One table for each state of the page cache."""
    model = results.model
    for cache in caches:
        files = "file" if len(model.safetensors) == 1 else "files"
        size = f"{model.size_bytes / GB:.2f} GB in {len(model.safetensors)} {files}"
        title = f"{model.name} ({size}), page cache {cache}, medians of {rounds} rounds"
        print_table(title, COLUMNS, _rows(results, cache))


def _rows(results: Results, cache: Cache) -> list[list[str]]:
    names = [*NODE_GROUP.names, *LIBRARY_GROUP.names]
    names += [name for group in PEERS for name in group.names]
    return [_row(results, cache, name) for name in names if name not in NOT_IN[cache]]


def _row(results: Results, cache: Cache, name: str) -> list[str]:
    measured = results.measured(cache, name)
    if not measured:
        return [name, results.reason(cache, name) or "not run"]
    seconds = [one.seconds for one in measured]
    middle = _seconds(measured)
    return [
        name,
        f"{middle:.2f} ({min(seconds):.2f}-{max(seconds):.2f})",
        f"{_median(measured, lambda one: one.call_seconds):.3f}",
        f"{results.model.size_bytes / middle / GB:.2f}",
        _of_ceiling(results, cache, name),
        f"{_median(measured, lambda one: one.cpu_seconds):.2f}",
        f"{_median(measured, lambda one: one.peak_bytes) / GB:.2f}",
        f"{_median(measured, lambda one: one.faults):.0f}",
    ]


def _of_ceiling(results: Results, cache: Cache, name: str) -> str:
    if name == ATTACH:
        return "-"
    return f"{_speedup(results, cache, name, _ceiling(cache, name)):.2f}"


def _median(measured: Sequence[Measurement], of: Callable[[Measurement], float]) -> float:
    return statistics.median(map(of, measured))


def _seconds(measured: Sequence[Measurement]) -> float:
    return _median(measured, lambda one: one.seconds)


def _ceiling(cache: Cache, name: str) -> str:
    """What a contender is held against: the disk, by way of the files that it reads, or memory."""
    if cache is Cache.WARM:
        return MEMCPY
    return DIRECT_PACKED if name in _OURS - PLAIN else DIRECT_PLAIN


def _speedup(results: Results, cache: Cache, name: str, other: str) -> float:
    """How many times faster `name` was than `other`; the median of the rounds' ratios."""
    ours, theirs = (results.measured_by_round(cache, one) for one in (name, other))
    ratios = [
        _seconds(there) / _seconds(here)
        for here, there in zip(ours, theirs, strict=True)
        if here and there
    ]
    return statistics.median(ratios) if ratios else float("nan")


def figures(results: Results) -> dict[str, float]:
    """The main figures, of one model."""
    cold = Cache.COLD
    without = results.measured(cold, NO_DIGESTS)
    peers = [name for name in _PEER_NAMES if results.measured(cold, name)]
    over_peers = [_speedup(results, cold, NODE, peer) for peer in peers]
    found = {
        "cold_ratio_to_ceiling": _speedup(results, cold, NODE, DIRECT_PACKED),
        "cold_ratio_to_ceiling_safetensors": _speedup(results, cold, IN_PLACE, DIRECT_PLAIN),
        "cold_speedup_over_safetensors": _speedup(results, cold, NODE, "safetensors"),
        "cold_speedup_over_best_peer": min(over_peers, default=float("nan")),
        "digest_cost_ratio": _speedup(results, cold, NO_DIGESTS, DIGESTS) - 1,
    }
    if without:
        cpu = _median(without, lambda one: one.cpu_seconds)
        found["cpu_seconds_per_gb"] = cpu / (results.model.size_bytes / GB)
    attached = results.measured(cold, ATTACH) or results.measured(Cache.WARM, ATTACH)
    if attached:
        found["attach_seconds"] = _median(attached, lambda one: one.call_seconds)
    return {name: value for name, value in found.items() if not isnan(value)}  # NaN: not run
