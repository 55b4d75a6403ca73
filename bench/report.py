"""What benchmarks print and write: medians with their spread, and one flat object of figures."""

import json
import platform
import statistics
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

TABLE_WIDTH = 110


def spread(values: Sequence[float], unit: str = "ms") -> str:
    """`median (min - max)` of seconds, as milliseconds or as they are."""
    factor = 1000.0 if unit == "ms" else 1.0
    middle, low, high = (factor * pick(values) for pick in (statistics.median, min, max))
    return f"{middle:.1f} ({low:.1f} - {high:.1f})"


def machine() -> str:
    """The machine in a line, without its name."""
    cores, memory = psutil.cpu_count(), psutil.virtual_memory().total / 2**30
    python = platform.python_version()
    return f"{cores} cores ({platform.machine()}), {memory:.0f} GiB, Python {python}"


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """One table on stdout."""
    table = Table(title=title, caption=f"{machine()}; {datetime.now(UTC):%Y-%m-%d}")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*row)
    Console(width=TABLE_WIDTH).print(table)


def write_figures(path: Path | None, figures: Mapping[str, float]) -> None:
    """The main figures as one flat JSON object, where asked for."""
    if path:
        path.write_text(json.dumps(dict(figures), indent=2) + "\n")
