"""The curves, as PNG."""

from collections.abc import Sequence
from pathlib import Path

from bench.simulation.results import Cell


def draw(cells: Sequence[Cell], directory: Path) -> list[Path]:
    """One picture for each dataset: start-up latency against the rate, P50 and P99."""
    import matplotlib as mpl

    mpl.use("Agg")  # there may be no display
    from matplotlib import pyplot

    paths = []
    for dataset in dict.fromkeys(one.dataset for one in cells):
        figure, axes = pyplot.subplots(1, 2, figsize=(11, 4), sharex=True)
        for axis, percent in zip(axes, (50, 99), strict=True):
            for policy in dict.fromkeys(one.policy for one in cells):
                curve = [one for one in cells if (one.dataset, one.policy) == (dataset, policy)]
                rates = [one.rate for one in curve]
                seconds = [one.percentile(percent) for one in curve]
                axis.plot(rates, seconds, marker="o", label=policy)
            axis.set(title=f"{dataset}, P{percent}", xlabel="requests/s", ylabel="seconds")
            axis.set_ylim(bottom=0)
            axis.legend()
        paths.append(directory / f"simulate-{dataset.lower()}.png")
        figure.tight_layout()
        figure.savefig(paths[-1], dpi=120)
        pyplot.close(figure)
    return paths
