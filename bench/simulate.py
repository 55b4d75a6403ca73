"""Start-up latency in a simulated GPU cluster, under this system's placement and under others.

    make bench-simulate BENCH='--json FILE --plots DIRECTORY'

A discrete-event simulation of the ServerlessLLM paper's cluster (`bench/simulation/hardware.py`)
that drives the real placement, cost model, autoscaler, queue and fleet by a manual clock. Start-up
latency is the time in which a request was not served: until it was for the first time, and again
wherever preemption or migration interrupted it.
"""

import statistics
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from bench.report import print_table, write_figures
from bench.simulation import experiments
from bench.simulation.comparison import Compared, compare
from bench.simulation.control import CONCURRENCY
from bench.simulation.experiments import Scale
from bench.simulation.plots import draw
from bench.simulation.results import (
    LEAST_BUSY,
    MOST_BUSY,
    MOST_LEFT,
    MOST_WAITING,
    Cell,
    Outcome,
)

COLUMNS = ("rate, 1/s", "policy", "mean, s", "P50", "P95", "P99", "waiting", "GPUs busy", "moved")
COMPARED_COLUMNS = (
    "mechanisms",
    *("P50, s", "P99", "pace", "GPU s", "GB s", "store, GB", "starts", "moved"),
)
COMPARED_SEEDS = 2
Rates = dict[tuple[str, float], dict[str, Cell]]
"""Of every dataset and rate, the cells by policy."""


def by_rate(cells: Iterable[Cell]) -> Rates:
    rates: Rates = {}
    for one in cells:
        rates.setdefault((one.dataset, one.rate), {})[one.policy] = one
    return rates


def state(row: dict[str, Cell]) -> str:
    """How busy the cluster is at a rate under this system: idle, busy, overrun or saturated."""
    found = row["sllm"].state
    overrun = row[experiments.INSTANT].waiting > MOST_WAITING
    return "overrun" if found == "busy" and overrun else found


def those(rates: Rates, *states: str) -> Rates:
    """The rates at which the cluster is in one of these states."""
    return {key: row for key, row in rates.items() if state(row) in states}


def gain(row: dict[str, Cell], over: str, percent: float = 99) -> float:
    """How many times lower this system's percentile is."""
    return row[over].percentile(percent) / row["sllm"].percentile(percent)


def gains(rates: Rates, over: str) -> float:
    """The geometric mean of the P99 gains; not a number where there are none."""
    found = [gain(row, over) for row in rates.values()]
    return statistics.geometric_mean(found) if found else float("nan")


def _row(one: Cell) -> list[str]:
    moved = sum(outcome.migrations + outcome.preemptions for outcome in one.outcomes)
    percentiles = [f"{one.percentile(percent):.2f}" for percent in (50, 95, 99)]
    mean, utilisation = f"{one.latencies.mean():.2f}", f"{one.utilisation:.2f}"
    waiting = f"{one.waiting:.1%}"
    return [f"{one.rate:g}", one.policy, mean, *percentiles, waiting, utilisation, str(moved)]


def _print_sweep(cells: Sequence[Cell]) -> None:
    for dataset in dict.fromkeys(one.dataset for one in cells):
        rows = [_row(one) for one in cells if one.dataset == dataset]
        print_table(f"Start-up latency, {dataset} lengths", COLUMNS, rows)
    print(
        f"busy: requests and loads take {LEAST_BUSY:.0%} to {MOST_BUSY:.0%} of the GPUs' time, and "
        f"at most {MOST_LEFT:.0%} of a trace's\nrequests wait when its last one comes. overrun: "
        f"the same, but more than {MOST_WAITING:.0%} of the requests would have\nto wait for a GPU "
        "even if starts took no time. moved: requests that were migrated or preempted.\n"
    )


def _print_gains(rates: Rates) -> None:
    others = [name for name in experiments.POLICIES if name != "sllm"]
    rows = [
        [dataset, f"{rate:g}", state(row), *(f"{gain(row, name):.2f}" for name in others)]
        for (dataset, rate), row in rates.items()
    ]
    columns = ["lengths", "rate, 1/s", "under sllm", *(f"over {name}" for name in others)]
    print_table("How many times lower P99 is", columns, rows)


def _print_beside(cells: Iterable[Cell], rates: Rates) -> None:
    rows = []
    for one in cells:
        row = rates[one.dataset, one.rate]
        for each in (row["locality"], one, row["preemption"], row["sllm"]):
            moved = sum(outcome.migrations + outcome.preemptions for outcome in each.outcomes)
            pauses = [f"{each.pause(percent):.2f}" if moved else "" for percent in (50, 99)]
            latencies = [f"{each.latencies.mean():.2f}", f"{each.percentile(99):.2f}"]
            rate = f"{each.rate:g}"
            rows.append([each.dataset, rate, each.policy, *latencies, str(moved), *pauses])
    columns = ("lengths", "rate, 1/s", "policy", "mean, s", "P99", "moved", "paused, P50", "P99")
    print_table("What migration is worth, and how long those that are moved pause", columns, rows)


def _print_large(outcome: Outcome, wall: float) -> None:
    decisions, latencies = outcome.decision_seconds, outcome.latencies
    rows = [
        ["decisions", f"{len(decisions)}"],
        ["decisions/s", f"{1 / decisions.mean():.0f}"],
        ["decision, P50, ms", f"{1000 * np.percentile(decisions, 50):.2f}"],
        ["decision, P99, ms", f"{1000 * np.percentile(decisions, 99):.2f}"],
        ["starts", f"{outcome.starts}"],
        ["start-up latency, mean, s", f"{latencies.mean():.2f}"],
        ["start-up latency, P99, s", f"{np.percentile(latencies, 99):.2f}"],
        ["GPUs busy", f"{outcome.utilisation:.2f}"],
        ["wall clock of the simulation, s", f"{wall:.1f}"],
    ]
    print_table("1,000 servers, 10,000 models, sllm", ["figure", "value"], rows)


def _print_compared(requests: int, large: int) -> dict[str, float]:
    """Mechanisms on and off; returns the main figures of each."""
    found = list(compare(requests, range(1, COMPARED_SEEDS + 1), large))
    for setting in dict.fromkeys(one.setting for one in found):
        rows = [_compared_row(one) for one in found if one.setting == setting]
        print_table(f"Mechanisms on and off, {setting}", COMPARED_COLUMNS, rows)
    return {
        f"{one.setting}, {one.variant}: {name}": value
        for one in found
        for name, value in (
            ("first_token_p99", one.first_token_p99),
            ("device_seconds", one.device_seconds),
        )
    }


def _compared_row(one: Compared) -> list[str]:
    times = (f"{value:.3f}" for value in (one.first_token_p50, one.first_token_p99))
    held = (f"{value:,.0f}" for value in (one.device_seconds, one.memory_seconds, one.store_bytes))
    return [one.variant, *times, f"{one.pace_p99:.2f}", *held, str(one.starts), str(one.migrations)]


def main(
    seeds: Annotated[int, typer.Option(help="Traces of every rate.")] = 4,
    requests: Annotated[int, typer.Option(help="Requests of a trace.")] = 3000,
    concurrency: Annotated[
        int, typer.Option(help="Requests that an instance works on at once.")
    ] = CONCURRENCY,
    large: Annotated[int, typer.Option(help="Requests of the large fleet's; 0: none.")] = 10_000,
    compared: Annotated[
        int, typer.Option(help="Requests of traces that compare mechanisms; 0: none.")
    ] = 3000,
    only_compare: Annotated[
        bool, typer.Option("--only-compare", help="Compare mechanisms, and nothing else.")
    ] = False,
    plots: Annotated[Path | None, typer.Option(help="Write the curves here, as PNG.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the main figures here.")] = None,
) -> None:
    """Sweeps the request rate, then looks at a large fleet."""
    if only_compare:
        write_figures(json, _print_compared(compared, large))
        return
    scale = Scale(range(1, seeds + 1), requests, concurrency)
    cells = list(experiments.sweep(scale))
    rates = by_rate(cells)
    _print_sweep(cells)
    _print_gains(rates)
    datasets = {one.name: one for one in experiments.RATES}
    loaded = those(rates, "busy", "overrun")
    beside = [experiments.beside(datasets[name], rate, scale) for name, rate in loaded]
    _print_beside(beside, rates)
    if large:
        began = time.perf_counter()
        _print_large(experiments.large(large, seed=1), time.perf_counter() - began)
    if plots:
        plots.mkdir(parents=True, exist_ok=True)
        print("\n".join(str(path) for path in draw(cells, plots)))
    over = ("random", "preemption", "locality")
    figures = {f"p99_gain_over_{name}": gains(those(rates, "busy"), name) for name in over}
    figures |= {f"p99_gain_over_{name}_overrun_too": gains(loaded, name) for name in over}
    if compared:
        figures |= _print_compared(compared, large)
    rows = [[name, f"{value:.3f}"] for name, value in figures.items()]
    print_table("Over the rates at which it is busy, geometric mean", ["figure", "value"], rows)
    write_figures(json, figures)


if __name__ == "__main__":
    typer.run(main)
